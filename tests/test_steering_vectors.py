"""Steering vectors: exact targets, strength 0 to the bit, files that come back and files that are refused, sets."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spinal_models import tiny_model
from tiny_tokenizer import CHAT, tiny_tokenizer

import alignscope
import zoo as models
from alignscope import InputError, SteeringVector, Subject
from alignscope.probes.padding import padded
from alignscope.steering import Ablate, Add, Clamp, Factors, Positions, Site, SteeringSet, Subspace
from alignscope.steering.factors import numbers_of
from alignscope.steering.files import written
from alignscope.steering.model_fit import FINGERPRINT, model_fingerprint
from alignscope.steering.sets import LARGEST_CONDITION, condition, joint_clamp

IDS, MASK = padded([[7, 30, 41, 12, 26], [33, 5, 9]], 0, left=True)
W = torch.randn(32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def unchecked(monkeypatch):
    """No types are checked at calls, as for users: what a function says of a wrong type itself."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


def factors(positive: float = 3.0, negative: float = 1.0, rank: int = 1) -> Factors:
    return Factors(torch.full((rank,), positive), torch.full((rank,), negative), torch.ones(2, rank), 72, 0.9)


def clamp(subject: Subject | None = None, rank: int = 1, layer: int = 1, **parts) -> SteeringVector:
    known = {} if subject is None else {"fingerprint": model_fingerprint(subject)}
    weight = torch.randn(rank, 32, generator=torch.Generator().manual_seed(3))
    return SteeringVector(
        **{
            "site": Site(layer),
            "subspace": Subspace(weight),
            "factors": factors(rank=rank),
            "positions": Positions(prefix=1),
            "method": "cdas",
            "metadata": {"seed": 42, "settings": {"lr": 0.04}, **known},
            "history": ({"step": 1, "loss": 0.5},),
            **parts,
        }
    )


def adding(**parts) -> SteeringVector:
    return SteeringVector.adding(W, Site(1), **parts)


def logits(subject: Subject) -> torch.Tensor:
    with torch.no_grad():
        return subject.logits(IDS, MASK)


def projections(subject: Subject, vector: SteeringVector) -> torch.Tensor:
    """Coordinates of all real tokens at the vector's site."""
    trace = subject.trace(IDS, MASK, reduce=lambda layer, h, mask: h[mask.bool()])
    return vector.subspace.project(trace[vector.site.layer + 1])


class TestTargets:
    @pytest.mark.parametrize(("strength", "expected"), [(-2, 0.0), (-1, 1.0), (1, 3.0), (2, 4.0), (0.5, 2.5)])
    def test_strength_counts_half_differences_from_the_middle(self, strength, expected):
        assert clamp().target(strength).item() == expected

    @pytest.mark.parametrize(("strength", "expected"), [(2, 6.0), (-2, 2.0), (1, 3.0), (-1, 1.0)])
    def test_the_released_scale_multiplies_one_factor(self, strength, expected):
        assert clamp().target(strength, scale="zero").item() == expected

    @pytest.mark.parametrize("multiplier", [2.0, -2.0, 1.2, -14.0])
    def test_a_released_multiplier_has_a_strength(self, multiplier):
        found = factors()
        strength = found.strength_of(multiplier).item()
        assert found.target(strength).item() == pytest.approx(found.target(multiplier, scale="zero").item())

    def test_equal_factors_have_no_such_strength_and_a_notice(self):
        with pytest.raises(InputError, match=r"f\+ equals f-"):
            factors(2.0, 2.0).strength_of(2.0)
        assert clamp(factors=factors(2.0, 2.0009)).notices() == (
            "direction does not separate the prompts: f+ and f- are as good as equal",
        )
        assert clamp(factors=factors(2.0, 2.0011)).notices() == ()

    @pytest.mark.parametrize("strength", [float("nan"), float("inf")])
    def test_a_strength_that_is_no_number_is_refused(self, strength):
        with pytest.raises(InputError, match="expected a finite number"):
            clamp().edit_for(strength)

    def test_factors_that_do_not_fit_are_refused(self):
        with pytest.raises(InputError, match="2 factors, and a subspace of rank 1"):
            clamp(factors=factors(rank=2))
        with pytest.raises(InputError, match="needs factors"):
            clamp(factors=None)
        with pytest.raises(InputError, match="not finite"):
            factors(float("nan"))


class TestEdits:
    def test_a_number_gives_one_target_and_a_sequence_one_a_row(self):
        vector = clamp()
        assert vector.edit_for(2.0).target.tolist() == [4.0]
        assert vector.edit_for(2.0, batch=2).target.tolist() == [[4.0], [4.0]]
        assert vector.edit_for([1.0, -1.0], batch=2).target.tolist() == [[3.0], [3.0], [1.0], [1.0]]

    def test_a_row_of_strength_0_is_left_alone(self, subject):
        for vector in (clamp(), adding(), clamp(edit="ablate", factors=None)):
            with vector.applied(subject, [0, 1]):
                swept = logits(subject)
            assert torch.equal(swept[0], logits(subject)[0])
            assert not torch.equal(swept[1], logits(subject)[1])

    @pytest.mark.parametrize("strengths", [np.array([1.0, -1.0]), torch.tensor([1, -1]), (np.float64(1), -1)])
    def test_an_array_or_a_tensor_is_a_sequence(self, subject, strengths):
        assert clamp().edit_for(strengths).target.tolist() == [[3.0], [1.0]]
        with clamp(subject).applied(subject, [1.0, -1.0]):
            expected = logits(subject)
        with clamp(subject).applied(subject, strengths):
            assert torch.equal(logits(subject), expected)

    @pytest.mark.parametrize("strength", [np.float64(2), np.array(2.0), torch.tensor(2)])
    def test_an_array_of_no_axis_is_a_number(self, strength):
        assert numbers_of(strength) == 2.0
        assert clamp().edit_for(strength).target.tolist() == [4.0]

    @pytest.mark.parametrize("strength", ["10", b"10", None, ["1"], [None], [[1.0], [2.0]], 1j, np.ones((2, 2))])
    def test_what_is_no_number_is_refused(self, subject, unchecked, strength):
        for refuse in (clamp().edit_for, lambda s: clamp().applied(subject, s)):
            with pytest.raises(InputError, match="expected a finite number"):
                refuse(strength)

    def test_an_edit_of_strength_0_edits_nothing(self, subject):
        with subject.editing({Site(1): clamp().edit_for(0.0)}):
            found = logits(subject)
        assert torch.equal(found, logits(subject))

    def test_the_kinds_of_edit(self):
        assert isinstance(clamp().edit_for(1.0), Clamp)
        assert isinstance(adding().edit_for(1.0), Add)
        assert isinstance(clamp(edit="ablate", factors=None).edit_for(1.0), Ablate)
        assert clamp().edit_for(1.0).positions == Positions(prefix=1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"edit": "ablate", "strength": 0.5}, r"on \(strength 1\) or off \(0\)"),
            ({"edit": "ablate", "neutral": True}, "are of a clamp"),
            ({"rank": 2, "mode": "min"}, "rank 1, got rank 2"),
            ({"scale": "half"}, "expected one of mid, zero"),
            ({"batch": 0}, "at least one of each"),
        ],
    )
    def test_options_that_an_edit_does_not_know_are_refused(self, options, message):
        made = {key: options.pop(key) for key in ("edit", "rank") if key in options}
        with pytest.raises(InputError, match=message):
            clamp(**made).edit_for(**options)

    @pytest.mark.parametrize("parts", [{"edit": "shift"}, {"edit": "add"}, {"vector": W}])
    def test_parts_that_do_not_fit_are_refused(self, parts):
        with pytest.raises(InputError, match=r"expected one of clamp, add, ablate|an add needs its vector"):
            clamp(**parts)


class TestApplied:
    @pytest.mark.parametrize(("strength", "expected"), [(1.0, 3.0), (-1.0, 1.0), (-2.0, 0.0)])
    def test_the_model_stands_at_the_target(self, subject, strength, expected):
        vector = clamp(subject, positions=Positions())
        with vector.applied(subject, strength):
            assert torch.allclose(projections(subject, vector), torch.tensor(expected), atol=1e-5)

    def test_neutral_is_the_middle_whatever_the_strength(self, subject):
        vector = clamp(subject, positions=Positions())
        with vector.applied(subject, 0, neutral=True):
            assert torch.allclose(projections(subject, vector), torch.tensor(2.0), atol=1e-5)

    def test_min_only_raises(self, subject):
        vector = clamp(subject, positions=Positions(), factors=factors(0.0, -1.0))
        before = projections(subject, vector)
        with vector.applied(subject, mode="min"):
            assert torch.allclose(projections(subject, vector), before.clamp(min=0.0), atol=1e-5)
        assert before.min() < -0.01

    @pytest.mark.parametrize("kind", ["clamp", "add", "ablate"])
    def test_strength_0_is_off_with_no_hook_and_the_same_bits(self, subject, kind):
        vector = {"clamp": clamp(), "add": adding(), "ablate": clamp(edit="ablate", factors=None)}[kind]
        plain = logits(subject)
        with vector.applied(subject, 0.0):
            assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
            assert torch.equal(logits(subject), plain)
        with vector.applied(subject, 1.0):
            assert not torch.equal(logits(subject), plain)
        assert torch.equal(logits(subject), plain)

    def test_an_added_vector_is_multiplied(self, subject):
        vector = adding()
        before = projections(subject, vector)
        with vector.applied(subject, -2.0):
            moved = projections(subject, vector) - before
        assert torch.allclose(moved, -2 * W.norm(), atol=1e-4)

    def test_flipping_the_direction_flips_the_factors_and_nothing_else(self, subject):
        vector = clamp(subject)
        flipped = clamp(subject, subspace=Subspace(-vector.subspace.basis), factors=factors(-3.0, -1.0))
        with vector.applied(subject, 1.5):
            expected = logits(subject)
        with flipped.applied(subject, 1.5):
            assert torch.allclose(logits(subject), expected, atol=1e-5)

    def test_swapping_turns_strengths_round(self, subject):
        for vector in (clamp(subject), adding()):
            with vector.applied(subject, 1.5):
                expected = logits(subject)
            with vector.swap().applied(subject, -1.5):
                assert torch.allclose(logits(subject), expected, atol=1e-5)
        swapped = clamp(factors=Factors(W[:1], W[1:2], torch.tensor([[1.0], [2.0]]), 5, 0.9)).swap()
        assert swapped.factors.std.flatten().tolist() == [2.0, 1.0]
        assert swapped.factors.auroc == pytest.approx(0.1)
        assert swapped.metadata["swapped"]
        assert not swapped.swap().metadata["swapped"]

    def test_a_prefix_that_depends_on_the_template_is_settled_on_the_model(self):
        subject = alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer(bos=False, template=CHAT))
        with clamp(positions=Positions(prefix="auto")).applied(subject):
            auto = logits(subject)
        with clamp(positions=Positions(prefix=3)).applied(subject):
            assert torch.equal(logits(subject), auto)


class TestFit:
    def test_another_width_is_refused(self):
        other = alignscope.wrap(tiny_model(blocks=3, width=40), tiny_tokenizer())
        with pytest.raises(InputError, match="hidden size 40, the vector is for 32"):
            clamp().applied(other)

    def test_a_layer_that_is_not_there_is_refused(self, subject):
        with pytest.raises(InputError, match=r"layer 3 is not in 0 \.\. 2"):
            clamp(layer=3).applied(subject)

    @pytest.mark.parametrize(("name", "value"), [("model_type", "qwen2"), ("n_layers", 4), ("hidden_size", 33)])
    def test_a_vector_of_another_model_is_refused(self, subject, name, value):
        known = {**model_fingerprint(subject), name: value}
        with pytest.raises(InputError, match=f"the vector was made on {value}"):
            clamp(metadata={"fingerprint": known}).applied(subject, allow_other_weights=True)

    def test_other_weights_are_refused_with_both_hashes_or_a_warning(self, subject):
        known = {**model_fingerprint(subject), "weights": "f00"}
        vector = clamp(metadata={"fingerprint": known})
        own = subject.fingerprints.weights
        with pytest.raises(InputError, match=f"its weights are {own}, the vector was made on f00; allow_other_weights"):
            vector.applied(subject)
        with pytest.warns(UserWarning, match="the vector was made on f00"):
            vector.applied(subject, allow_other_weights=True)

    def test_another_template_is_a_warning(self, subject):
        known = {**model_fingerprint(subject), "template": "f00"}
        with pytest.warns(UserWarning, match="another chat template"):
            clamp(metadata={"fingerprint": known}).applied(subject)


class TestFiles:
    @pytest.mark.parametrize("kind", ["clamp", "rank 3", "add", "ablate"])
    def test_what_was_saved_steers_to_the_bit(self, subject, tmp_path, kind):
        vector = {
            "clamp": clamp(subject),
            "rank 3": clamp(subject, rank=3),
            "add": adding(metadata={"fingerprint": model_fingerprint(subject)}),
            "ablate": clamp(subject, edit="ablate", factors=None),
        }[kind]
        file = vector.save(tmp_path / "folder" / "vector")
        assert file.name == "vector.safetensors"
        back = SteeringVector.load(file, subject)
        with vector.applied(subject):
            expected = logits(subject)
        with back.applied(subject):
            assert torch.equal(logits(subject), expected)
        for name in ("site", "edit", "positions", "method", "metadata"):
            assert getattr(back, name) == getattr(vector, name)
        assert tuple(back.history) == tuple(vector.history)
        assert SteeringVector.load(tmp_path / "folder" / "vector").site == vector.site
        assert [path.name for path in file.parent.iterdir()] == [file.name]

    def test_the_file_holds_named_float32_tensors_and_one_json(self, subject, tmp_path):
        file = clamp(subject, rank=2).save(tmp_path / "a.safetensors")
        with safe_open(file, framework="pt") as handle:
            shapes = {name: tuple(handle.get_tensor(name).shape) for name in handle.keys()}  # noqa: SIM118
            header = json.loads(handle.metadata()["alignscope"])
        assert shapes == {
            "1.resid_post.basis": (2, 32),
            "1.resid_post.factor_positive": (2,),
            "1.resid_post.factor_negative": (2,),
            "1.resid_post.factor_std": (2, 2),
        }
        assert (header["edit"], header["prefix"], header["seed"], header["factors"]["n"]) == ("clamp", 1, 42, 72)
        known = header["fingerprint"]
        assert (known["model_type"], known["hidden_size"], known["n_layers"]) == ("llama", 32, 3)

    def test_a_model_loaded_from_the_same_files_takes_it_and_its_sibling_does_not(self, tmp_path, zoo):
        subject = alignscope.load(zoo["llama"])
        vector = SteeringVector.adding(torch.ones(64), Site(1), metadata={"fingerprint": model_fingerprint(subject)})
        file = vector.save(tmp_path / "a")
        SteeringVector.load(file, alignscope.load(zoo["llama"]))
        with pytest.raises(InputError, match="model type qwen2"):
            SteeringVector.load(file, alignscope.load(zoo["qwen2"]), allow_other_weights=True)
        sibling = models.model("llama")
        with torch.no_grad():
            sibling.lm_head.weight[0, 0] += 1
        other = alignscope.wrap(sibling, models.tokenizer())
        with pytest.raises(InputError, match="allow_other_weights=True"):
            SteeringVector.load(file, other)
        with pytest.warns(UserWarning, match="its weights are"):
            loaded = SteeringVector.load(file, other, allow_other_weights=True)
        with pytest.warns(UserWarning, match="its weights are"):
            loaded.applied(other)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t, h: h["fingerprint"].update(hidden_size=33), "a basis of width 32 for a hidden size of 33"),
            (
                lambda t, h: t.update({k.replace("1.", "3.", 1): t.pop(k) for k in list(t)}),
                r"layer 3 is not in 0 \.\. 2",
            ),
            (lambda t, h: t["1.resid_post.basis"].mul_(1.001), r"not orthonormal: max \|S S\^T - I\| is 0\.002"),
            (lambda t, h: t["1.resid_post.basis"].fill_(float("nan")), "basis holds values that are not finite"),
            (lambda t, h: t["1.resid_post.factor_std"].fill_(float("inf")), "factor_std holds values that are not"),
            (lambda t, h: t.pop("1.resid_post.factor_negative"), "no tensor factor_negative"),
            (lambda t, h: t.pop("1.resid_post.basis"), "no tensor basis"),
            (lambda t, h: t.update({"2.resid_post.basis": torch.eye(32)[:1].clone()}), "expected those of one site"),
            (lambda t, h: h.update(version=2), "version 2, this alignscope reads up to 1"),
            (lambda t, h: h.update(format="other"), "not a steering vector of this tool"),
            (lambda t, h: h["positions"].update(where="some"), "positions 'some'"),
            (lambda t, h: h.pop("prefix"), "its header lacks prefix; copy"),
            (lambda t, h: h.update(prefix=None), "its header lacks prefix; copy"),
            (lambda t, h: h.pop("edit"), "its header lacks edit; copy"),
            (lambda t, h: h.pop("positions"), "its header lacks positions; copy"),
            (lambda t, h: h.update(positions=None), "its header lacks positions, positions.where"),
            (lambda t, h: h["positions"].pop("where"), "its header lacks positions.where; copy"),
            (lambda t, h: h["positions"].pop("span"), "its header lacks positions.span; copy"),
            (lambda t, h: [h.pop(k) for k in ("method", "history")], "its header lacks method, history; copy"),
            (lambda t, h: h.pop("factors"), "its header lacks factors; copy"),
            (lambda t, h: h.update(positions=[1]), r"positions in its header is \[1\], expected an object"),
            (lambda t, h: h["positions"].update(span=[1]), r"positions.span in its header is \[1\], expected two"),
            (lambda t, h: h["positions"].update(last="3"), "positions.last in its header is '3'"),
            (lambda t, h: h.update(prefix=[1]), r"prefix in its header is \[1\], expected a whole number or 'auto'"),
            (lambda t, h: h.update(factors=[1]), r"factors in its header is \[1\], expected an object"),
            (lambda t, h: h["factors"].update(auroc=float("nan")), "factors.auroc in its header is nan"),
            (lambda t, h: h.update(fingerprint="abc"), "fingerprint in its header is 'abc', expected an object"),
            (lambda t, h: h["fingerprint"].update(n_layers="3"), "fingerprint.n_layers in its header is '3'"),
            (lambda t, h: h.update(history=5), "history in its header is 5, expected a list of objects"),
            (lambda t, h: h.update(history=["step"]), "history in its header"),
            (lambda t, h: h.update(method=5), "method in its header is 5, expected text"),
            (lambda t, h: h.update(edit=["clamp"]), "edit in its header"),
            (lambda t, h: h.update(notices="careful"), "notices in its header is 'careful', expected a list of texts"),
            (lambda t, h: h.update(settings=5), "settings in its header"),
            (lambda t, h: h["fingerprint"].pop("weights"), "its fingerprint lacks weights"),
            (lambda t, h: h["fingerprint"].update(weights=None, n_layers=None), "lacks n_layers, weights"),
            (lambda t, h: t.update({"1.resid_post.factor_std": torch.ones(3, 1)}), r"\(3, 1\): expected \[2, 1\]"),
            (
                lambda t, h: [t.update({k: v[None]}) for k, v in t.items() if "factor_p" in k or "factor_n" in k],
                r"factors of shapes \(1, 1\) and \(1, 1\): expected \[k\]",
            ),
            (lambda t, h: t.update({k.replace("post", "mid"): t.pop(k) for k in list(t)}), "component 'resid_mid'"),
        ],
    )
    def test_a_file_that_is_not_right_is_refused_with_the_reason(self, subject, tmp_path, change, message):
        file = clamp(subject).save(tmp_path / "a.safetensors")
        with safe_open(file, framework="pt") as handle:
            header = json.loads(handle.metadata()["alignscope"])
        tensors = load_file(file)
        change(tensors, header)
        save_file(tensors, file, metadata={"alignscope": json.dumps(header)})
        with pytest.raises(InputError, match=f"^{re.escape(str(file))}: .*{message}"):
            SteeringVector.load(file)

    def test_a_file_of_a_vector_made_by_hand_says_that_it_knows_no_model(self, subject, tmp_path):
        vector = adding()
        assert vector.notices() == ()
        back = SteeringVector.load(vector.save(tmp_path / "a"), subject)
        assert len(back.notices()) == 1
        assert "does not say which model the vector was made on" in back.notices()[0]
        assert back.metadata == vector.metadata
        with vector.applied(subject):
            expected = logits(subject)
        with back.applied(subject):
            assert torch.equal(logits(subject), expected)
        known = replace(back, metadata={"fingerprint": model_fingerprint(subject)})
        assert known.notices() == ()
        assert SteeringVector.load(known.save(tmp_path / "b")).notices() == ()

    def test_a_fingerprint_has_what_a_file_must_say(self, subject):
        assert tuple(model_fingerprint(subject)) == FINGERPRINT

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"fingerprint": {"hidden_size": 32, "n_layers": 3}}, "lacks model_type, vocab_size, .*weights"),
            ({"settings": "fast"}, "settings in its header is 'fast'"),
        ],
    )
    def test_what_could_not_be_read_again_is_not_written(self, tmp_path, metadata, message):
        with pytest.raises(InputError, match=message):
            adding(metadata=metadata).save(tmp_path / "a")
        assert not list(tmp_path.iterdir())

    def test_an_error_in_the_middle_leaves_nothing_behind(self, tmp_path):
        (tmp_path / "a").write_text("old")

        def interrupted() -> None:
            with written(tmp_path / "a") as temporary:
                temporary.write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]

    def test_a_basis_that_rounding_has_moved_is_taken(self, subject, tmp_path):
        file = clamp(subject).save(tmp_path / "a.safetensors")
        with safe_open(file, framework="pt") as handle:
            metadata = handle.metadata()
        tensors = load_file(file)
        tensors["1.resid_post.basis"].mul_(1 + 4e-5)
        save_file(tensors, file, metadata=metadata)
        assert SteeringVector.load(file).subspace.rank == 1

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_pickle_is_refused(self, tmp_path, zipped):
        file = tmp_path / "a.safetensors"
        torch.save({"basis": W}, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="a pickle, which can run code"):
            SteeringVector.load(file)

    def test_no_file_and_a_cut_one(self, subject, tmp_path):
        with pytest.raises(InputError, match="no such file"):
            SteeringVector.load(tmp_path / "none")
        file = clamp(subject).save(tmp_path / "a")
        file.write_bytes(file.read_bytes()[:-4])
        with pytest.raises(InputError, match="not a readable safetensors file"):
            SteeringVector.load(file)

    def test_tensors_of_another_tool_are_refused(self, tmp_path):
        save_file({"1.resid_post.basis": torch.eye(3)}, tmp_path / "a.safetensors")
        with pytest.raises(InputError, match="not JSON; is it a file of this tool"):
            SteeringVector.load(tmp_path / "a")

    @pytest.mark.parametrize("metadata", [{"x": float("nan")}, {"x": W}, {"edit": "add"}])
    def test_metadata_that_cannot_be_kept_is_refused(self, tmp_path, metadata):
        with pytest.raises(InputError, match=r"must be JSON values|a place of its own"):
            clamp(metadata=metadata).save(tmp_path / "a")
        assert not list(tmp_path.iterdir())

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be written"):
            clamp().save(tmp_path / "file" / "a")


def plane(angle: float, **parts) -> SteeringVector:
    """A clamp at layer 1 along (cos, sin, 0, ...), to 1 at strength 1 and to -1 at -1."""
    weight = torch.zeros(1, 32)
    weight[0, :2] = torch.tensor([torch.tensor(angle).cos(), torch.tensor(angle).sin()])
    return clamp(subspace=Subspace(weight), factors=factors(1.0, -1.0), positions=Positions(), **parts)


OBLIQUE = float(torch.tensor(0.6).acos())
SIXTY = torch.pi / 3


class TestSets:
    def test_joint_clamps_reach_all_targets_and_others_the_last(self, subject):
        vectors = [plane(0.0), plane(OBLIQUE)]
        with SteeringSet(vectors).applied(subject):
            both = [projections(subject, vector) for vector in vectors]
        assert all(torch.allclose(found, torch.tensor(1.0), atol=1e-5) for found in both)
        with SteeringSet(vectors, joint=False).applied(subject):
            first, last = (projections(subject, vector) for vector in vectors)
        assert torch.allclose(last, torch.tensor(1.0), atol=1e-5)
        assert (first - 1).abs().max() > 0.1

    def test_each_has_its_strength_and_0_leaves_one_out(self, subject):
        vectors = [plane(0.0), plane(OBLIQUE)]
        with SteeringSet(vectors).applied(subject, [-1.0, 2.0]):
            found = [projections(subject, vector) for vector in vectors]
        assert torch.allclose(found[0], torch.tensor(-1.0), atol=1e-5)
        assert torch.allclose(found[1], torch.tensor(2.0), atol=1e-5)
        with vectors[1].applied(subject):
            expected = logits(subject)
        with SteeringSet(vectors).applied(subject, [0, 1]):
            assert torch.equal(logits(subject), expected)
        plain = logits(subject)
        with SteeringSet(vectors).applied(subject, 0.0):
            assert torch.equal(logits(subject), plain)

    def test_adds_sum_and_a_clamp_after_them_wins(self, subject):
        vector = plane(0.0)
        add = SteeringVector.adding(vector.subspace.basis[0].clone(), Site(1))
        before = projections(subject, vector)
        with SteeringSet([add, add]).applied(subject, [1.0, 3.0]):
            assert torch.allclose(projections(subject, vector), before + 4, atol=1e-5)
        with SteeringSet([add, vector]).applied(subject, 1.0):
            assert torch.allclose(projections(subject, vector), torch.tensor(1.0), atol=1e-5)
        with SteeringSet([vector, add]).applied(subject, 1.0):
            assert torch.allclose(projections(subject, vector), torch.tensor(2.0), atol=1e-5)

    def test_an_ablation_joins_the_clamps(self, subject):
        ablated = plane(0.0, edit="ablate")
        with SteeringSet([ablated, plane(OBLIQUE)]).applied(subject):
            assert torch.allclose(projections(subject, ablated), torch.tensor(0.0), atol=1e-5)
            assert torch.allclose(projections(subject, plane(OBLIQUE)), torch.tensor(1.0), atol=1e-5)

    def test_different_sites_are_independent_contexts(self, subject):
        first, second = plane(0.0), plane(0.0, site=Site(2))
        with SteeringSet([first, second]).applied(subject, [1.0, -1.0]):
            assert torch.allclose(projections(subject, first), torch.tensor(1.0), atol=1e-5)
            assert torch.allclose(projections(subject, second), torch.tensor(-1.0), atol=1e-5)

    @pytest.mark.parametrize(
        ("cosine", "refused", "noticed"), [(0.96, True, True), (0.94, False, True), (0.4, False, False)]
    )
    def test_directions_that_nearly_agree_are_refused_and_close_ones_noticed(self, cosine, refused, noticed):
        vectors = [plane(0.0), plane(float(torch.tensor(-cosine).acos()))]
        if refused:
            with pytest.raises(InputError, match=r"vectors 0 and 1 at 1.resid_post: \|cos\| 0.96 is above 0.95"):
                SteeringSet(vectors)
        assert (len(SteeringSet(vectors, joint=refused is False).notices()) == 1) == noticed
        assert SteeringSet([vectors[0], replace(vectors[1], site=Site(2))]).notices() == ()

    @pytest.mark.parametrize("tilt", [0.0, 1e-3])
    def test_three_directions_of_which_no_two_agree_may_depend_on_each_other(self, tilt):
        weight = plane(2 * SIXTY).subspace.basis.clone()
        weight[0, 2] = tilt
        vectors = [plane(0.0), plane(SIXTY), replace(plane(0.0), subspace=Subspace(weight))]
        with pytest.raises(InputError, match=r"vectors 0, 1, 2 at 1\.resid_post: together .* above 39\)"):
            SteeringSet(vectors)
        with pytest.raises(InputError, match=r"vectors 1, 2, 3 at 1\.resid_post"):
            SteeringSet([replace(vectors[0], site=Site(2)), *vectors[:2], replace(vectors[2], edit="ablate")])
        SteeringSet(vectors, joint=False)
        for one in range(3):
            SteeringSet([vector for i, vector in enumerate(vectors) if i != one])

    def test_the_bound_for_three_is_that_of_two(self):
        angle = torch.tensor(0.95).acos()
        pair = [plane(0.0).subspace, plane(float(angle)).subspace]
        assert condition(pair) == pytest.approx(39, rel=1e-4) == LARGEST_CONDITION  # float32 cosines
        aside = torch.zeros(1, 32)
        aside[0, 3] = 1
        assert condition([*pair, Subspace(aside)]) == pytest.approx(condition(pair))
        assert condition([Subspace(torch.eye(32)[i]) for i in range(4)]) == pytest.approx(1)

    def test_more_directions_than_the_width_depend_on_each_other(self):
        vectors = [clamp(subspace=Subspace(torch.eye(32)[i : i + 16]), factors=factors(rank=16)) for i in (0, 16)]
        with pytest.raises(InputError, match="condition inf"):
            SteeringSet([*vectors, clamp(subspace=Subspace(torch.ones(32)), factors=factors())])

    def test_on_different_positions_directions_are_not_solved_together(self, subject):
        elsewhere = replace(plane(2 * SIXTY), positions=Positions(prefix=1))
        for vectors in ([plane(0.0), plane(SIXTY), elsewhere], [plane(2 * SIXTY), elsewhere]):
            with pytest.raises(InputError, match="different positions"):
                SteeringSet(vectors).applied(subject)

    def test_strengths_a_row_are_of_one_vector_alone(self, subject, unchecked):
        with pytest.raises(InputError, match=r"strength=\[1, 2\]: expected a finite number"):
            SteeringSet([plane(0.0), plane(OBLIQUE)]).applied(subject, [[1, 2], [0, 1]])
        with pytest.raises(InputError, match="strength='10': expected"):
            SteeringSet([plane(0.0), plane(OBLIQUE)]).applied(subject, "10")

    def test_the_joint_clamp_has_one_target_for_all_rows(self):
        edits = [plane(angle).edit_for(1.0, batch=2) for angle in (0.0, OBLIQUE)]
        with pytest.raises(ValueError, match=r"clamp 0: target of shape \(2, 1\), expected \[1\]"):
            joint_clamp(edits)

    def test_strengths_of_a_set_may_be_an_array(self, subject):
        vectors = [plane(0.0), plane(OBLIQUE)]
        with SteeringSet(vectors).applied(subject, np.array([-1.0, 2.0])):
            assert torch.allclose(projections(subject, vectors[1]), torch.tensor(2.0), atol=1e-5)

    def test_clamps_on_different_positions_have_no_joint_solution(self, subject):
        vectors = [plane(0.0), replace(plane(OBLIQUE), positions=Positions(prefix=1))]
        with pytest.raises(InputError, match="different positions"):
            SteeringSet(vectors).applied(subject)
        SteeringSet(vectors, joint=False).applied(subject)

    def test_numbers_that_do_not_fit_are_refused(self, subject):
        with pytest.raises(InputError, match="3 strengths for 1 vectors"):
            SteeringSet([plane(0.0)]).applied(subject, [1, 2, 3])
        with pytest.raises(InputError, match="a set of no vectors"):
            SteeringSet([])
        with pytest.raises(InputError, match=r"layer 3 is not in"):
            SteeringSet([plane(0.0, site=Site(3))]).applied(subject)


def test_loading_warns_of_nothing_on_the_model_itself(subject, tmp_path):
    file: Path = clamp(subject).save(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SteeringVector.load(file, subject)
