"""Sets of vectors as folders: they steer as they did when they were saved, and are refused where they cannot."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spinal_models import tiny_model
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import InputError, SteeringVector, Subject
from alignscope.probes.padding import padded
from alignscope.steering import Ablate, Factors, Positions, Site, SteeringSet, Subspace, set_files
from alignscope.steering.conversion import read_together, read_vectors
from alignscope.steering.model_fit import model_fingerprint
from alignscope.steering.set_files import CARD, is_set, read_card, set_facts

IDS, MASK = padded([[7, 30, 41, 12, 26], [33, 5, 9]], 0, left=True)
PLANE = Subspace(torch.eye(32)[:2])


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Its fingerprint is not hashed anew: checked types ask for it at every call."""
    live = alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())
    return live.under(live.name, live.fingerprints)


def clamp(*direction: float, positive: float = 1.0, **parts) -> SteeringVector:
    """To `positive` along a direction of the plane at block 1, at strength 1."""
    weight = torch.zeros(32)
    weight[: len(direction)] = torch.tensor(direction)
    factors = Factors(torch.tensor([positive]), torch.tensor([-positive]), None, 72)
    return SteeringVector(**{"site": Site(1), "subspace": Subspace(weight), "factors": factors, **parts})


FIRST, SECOND = clamp(1.0, 0.0), clamp(0.6, 0.8)  # of the specification's example


def logits(subject: Subject) -> torch.Tensor:
    with torch.no_grad():
        return subject.logits(IDS, MASK)


def from_zero(subject: Subject, vectors: SteeringSet, strengths=1.0) -> list[float]:
    """Where the set puts a state that is 0 in the plane: its two coordinates, of every token the same."""
    with subject.editing({Site(1): Ablate(PLANE)}), vectors.applied(subject, strengths):
        found = subject.trace(IDS, MASK, reduce=lambda layer, h, mask: PLANE.project(h[mask.bool()]))[2]
    assert torch.allclose(found, found[:1], atol=1e-5)
    return found[0].tolist()


def rewritten(folder: Path, **changes) -> Path:
    """The card with other values; None takes one out."""
    card = json.loads((folder / CARD).read_text()) | changes
    (folder / CARD).write_text(json.dumps({key: value for key, value in card.items() if value is not None}))
    return folder


class TestRoundTrip:
    @pytest.mark.parametrize(
        ("vectors", "joint", "expected"),
        [
            ([FIRST, SECOND], True, (1.0, 0.5)),
            ([SECOND, FIRST], True, (1.0, 0.5)),
            ([FIRST, SECOND], False, (1.24, 0.32)),
            ([SECOND, FIRST], False, (1.0, 0.8)),
        ],
    )
    def test_targets_are_reached_as_the_set_says_in_its_order(self, subject, tmp_path, vectors, joint, expected):
        folder = SteeringSet(vectors, joint).save(tmp_path / "set")
        back = SteeringSet.load(folder, subject)
        assert back.joint is joint
        assert from_zero(subject, back) == pytest.approx(expected, abs=1e-5)

    def test_each_keeps_its_strength(self, subject, tmp_path):
        back = SteeringSet.load(SteeringSet([FIRST, SECOND]).save(tmp_path / "set"))
        x, y = from_zero(subject, back, [-1.0, 2.0])
        assert (x, 0.6 * x + 0.8 * y) == pytest.approx((-1.0, 2.0), abs=1e-5)

    @pytest.mark.parametrize("joint", [True, False])
    def test_a_set_of_all_kinds_steers_to_the_bit(self, subject, tmp_path, joint):
        known = {"fingerprint": model_fingerprint(subject)}
        vectors = [
            clamp(0.3, 0.5, 0.7, metadata=known),
            SteeringVector.adding(torch.linspace(-1, 1, 32), Site(1), metadata=known),
            clamp(0.1, -0.9, 0.2, edit="ablate", factors=None, metadata=known),
            clamp(1.0, site=Site(0, "mlp_out"), positions=Positions(prefix=1), metadata=known),
        ]
        whole = SteeringSet(vectors, joint)
        folder = whole.save(tmp_path / "deep" / "set")
        back = SteeringSet.load(folder, subject)
        for strengths in (1.0, [0.5, -2.0, 1.0, 3.0]):
            with whole.applied(subject, strengths):
                expected = logits(subject)
            with back.applied(subject, strengths):
                assert torch.equal(logits(subject), expected)
        assert not torch.equal(expected, logits(subject))

    def test_the_folder_holds_ordinary_vectors_and_one_card(self, tmp_path):
        folder = SteeringSet([FIRST, SECOND], joint=False).save(tmp_path / "set")
        assert sorted(one.name for one in folder.iterdir()) == [CARD, "vector_0.safetensors", "vector_1.safetensors"]
        card = json.loads((folder / CARD).read_text())
        assert (card["format"], card["version"], card["joint"]) == ("alignscope steering set", 1, False)
        assert [row["file"] for row in card["vectors"]] == ["vector_0.safetensors", "vector_1.safetensors"]
        alone = SteeringVector.load(folder / "vector_1.safetensors")
        assert torch.equal(alone.subspace.basis, SECOND.subspace.basis)
        assert [one.name for one in tmp_path.iterdir()] == ["set"]

    @settings(max_examples=10, deadline=None)
    @given(order=st.permutations(range(12)))
    def test_the_order_is_that_of_the_set_beyond_ten_too(self, tmp_path_factory, order):
        vectors = [replace(FIRST, method=str(i)) for i in order]
        folder = SteeringSet(vectors, joint=False).save(tmp_path_factory.mktemp("order") / "set")
        assert [vector.method for vector in SteeringSet.load(folder).vectors] == [str(i) for i in order]


class TestSaving:
    def test_a_folder_that_is_there_is_replaced_on_request_alone(self, subject, tmp_path):
        folder = SteeringSet([FIRST, SECOND, clamp(0.0, 1.0, site=Site(2))]).save(tmp_path / "set")
        with pytest.raises(InputError, match="is there already; overwrite=True"):
            SteeringSet([FIRST]).save(folder)
        assert len(SteeringSet.load(folder).vectors) == 3
        SteeringSet([SECOND]).save(folder, overwrite=True)
        assert len(SteeringSet.load(folder).vectors) == 1
        assert sorted(one.name for one in folder.iterdir()) == [CARD, "vector_0.safetensors"]
        assert [one.name for one in tmp_path.iterdir()] == ["set"]

    def test_an_empty_folder_is_taken_on_request(self, tmp_path):
        (tmp_path / "set").mkdir()
        assert is_set(SteeringSet([FIRST]).save(tmp_path / "set", overwrite=True))

    @pytest.mark.parametrize("name", ["notes.txt", "vector_0.safetensors"])
    def test_what_is_no_set_is_never_replaced(self, tmp_path, name):
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / name).write_text("mine")
        with pytest.raises(InputError, match=f"holds {name}, and only a set is replaced"):
            SteeringSet([FIRST]).save(tmp_path / "set", overwrite=True)
        assert (tmp_path / "set" / name).read_text() == "mine"

    @pytest.mark.parametrize("name", ["notes.txt", "vector_1.safetensors"])
    def test_a_set_beside_a_file_of_ones_own_is_not_replaced(self, tmp_path, name):
        folder = SteeringSet([FIRST]).save(tmp_path / "set")
        (folder / name).write_text("mine")
        with pytest.raises(InputError, match=f"holds {name}, and only a set is replaced"):
            SteeringSet([SECOND]).save(folder, overwrite=True)
        assert (folder / name).read_text() == "mine"

    def test_a_set_whose_card_is_damaged_is_not_replaced(self, tmp_path):
        folder = SteeringSet([FIRST]).save(tmp_path / "set")
        (folder / CARD).write_text("mine")
        with pytest.raises(InputError, match="not JSON"):
            SteeringSet([SECOND]).save(folder, overwrite=True)
        assert len([*folder.iterdir()]) == 2

    def test_members_of_other_names_are_the_sets_own(self, tmp_path):
        folder = SteeringSet([FIRST]).save(tmp_path / "set")
        card = json.loads((folder / CARD).read_text())
        (folder / "vector_0.safetensors").rename(folder / "a.safetensors")
        card["vectors"][0]["file"] = "a.safetensors"
        (folder / CARD).write_text(json.dumps(card))
        assert len(SteeringSet.load(folder).vectors) == 1
        SteeringSet([FIRST, SECOND]).save(folder, overwrite=True)
        assert sorted(one.name for one in folder.iterdir()) == [CARD, "vector_0.safetensors", "vector_1.safetensors"]

    def test_a_file_in_its_place_is_refused(self, tmp_path):
        (tmp_path / "set").write_text("mine")
        with pytest.raises(InputError, match="a file; a set is a folder"):
            SteeringSet([FIRST]).save(tmp_path / "set", overwrite=True)
        with pytest.raises(InputError, match="cannot be written"):
            SteeringSet([FIRST]).save(tmp_path / "set" / "below")

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"x": float("nan")}, "set, vector 1: metadata and history must be JSON values"),
            ({"fingerprint": {"hidden_size": 32}}, "set, vector 1: its fingerprint lacks model_type"),
        ],
    )
    def test_a_vector_that_cannot_be_saved_is_named_and_leaves_nothing(self, tmp_path, metadata, message):
        with pytest.raises(InputError, match=message):
            SteeringSet([FIRST, replace(SECOND, metadata=metadata)]).save(tmp_path / "set")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("broken", ["_write", "_publish"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
    def test_an_error_in_the_middle_leaves_the_set_that_was_there(self, tmp_path, monkeypatch, broken, error):
        folder = SteeringSet([FIRST, SECOND]).save(tmp_path / "set")
        done = getattr(set_files, broken)

        def fails(*arguments):
            if broken == "_write":
                done(*arguments)
            raise error

        monkeypatch.setattr(set_files, broken, fails)
        for path, overwrite in ((folder, True), (tmp_path / "new", False)):
            with pytest.raises((InputError, KeyboardInterrupt)):
                SteeringSet([FIRST]).save(path, overwrite=overwrite)
        assert [one.name for one in tmp_path.iterdir()] == ["set"]
        assert len(SteeringSet.load(folder).vectors) == 2

    def test_the_set_that_was_there_comes_back_where_the_new_one_cannot_stand(self, tmp_path, monkeypatch):
        folder = SteeringSet([FIRST, SECOND]).save(tmp_path / "set")
        move = set_files.os.replace

        def fails_once_free(source, target):
            if Path(target) == folder and ".old" not in str(source):
                raise OSError(28, "No space left on device")
            move(source, target)

        monkeypatch.setattr(set_files.os, "replace", fails_once_free)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            SteeringSet([FIRST]).save(folder, overwrite=True)
        assert len(SteeringSet.load(folder).vectors) == 2
        assert [one.name for one in tmp_path.iterdir()] == ["set"]


class TestLoading:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        return SteeringSet([FIRST, SECOND]).save(tmp_path / "set")

    def test_what_is_no_set_is_refused(self, folder, tmp_path):
        with pytest.raises(InputError, match="none: no such folder"):
            SteeringSet.load(tmp_path / "none")
        with pytest.raises(InputError, match=r"not a set of steering vectors \(a folder without set\.json\)"):
            SteeringSet.load(tmp_path)
        with pytest.raises(InputError, match=r"\(a file, and a set is a folder\)"):
            SteeringSet.load(folder / "vector_0.safetensors")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": "another"}, "not of a set of steering vectors"),
            ({"format": None}, "not of a set of steering vectors"),
            ({"version": 2}, "version 2, this alignscope reads up to 1; update it"),
            ({"version": True}, "version True"),
            ({"version": None}, "version None"),
            ({"joint": 1}, "joint is 1, expected true or false"),
            ({"joint": None}, "joint is None"),
            ({"vectors": []}, r"vectors is \[\], expected a list"),
            ({"vectors": ["a"]}, "vector 0 is 'a', expected {file, sha256}"),
            ({"vectors": [{"file": "a.safetensors", "sha256": "12"}]}, "64 hex digits"),
            ({"vectors": [{"file": "../a.safetensors", "sha256": "0" * 64}]}, "a .safetensors file in this folder"),
            ({"vectors": [{"file": "/a.safetensors", "sha256": "0" * 64}]}, "a .safetensors file in this folder"),
            ({"vectors": [{"file": "a.pt", "sha256": "0" * 64}]}, "a .safetensors file in this folder"),
        ],
    )
    def test_a_card_that_is_not_right_is_refused_with_the_reason(self, folder, changes, message):
        with pytest.raises(InputError, match=rf"set\.json: .*{message}"):
            SteeringSet.load(rewritten(folder, **changes))

    @pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, b"\xff\xfe"])
    def test_a_card_that_is_no_json_object_is_refused(self, folder, text):
        (folder / CARD).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match=r"set\.json: (not JSON|not of a set)"):
            SteeringSet.load(folder)

    def test_a_file_that_is_missing_is_named(self, folder):
        (folder / "vector_1.safetensors").unlink()
        with pytest.raises(InputError, match=r"vector_1\.safetensors: no such file, and set\.json names it"):
            SteeringSet.load(folder)

    def test_a_file_that_has_changed_is_named_with_both_hashes(self, folder):
        file = folder / "vector_0.safetensors"
        before = read_card(folder)[1][0].sha256
        clamp(1.0, 0.0, positive=1.5).save(file)
        with pytest.raises(InputError, match=rf"vector_0\.safetensors: changed .*\(sha256 .*says {before}\)"):
            SteeringSet.load(folder)

    @pytest.mark.parametrize("change", ["pickle", "basis"])
    def test_each_file_is_refused_as_a_vector_is(self, folder, change):
        file = folder / "vector_1.safetensors"
        if change == "pickle":
            torch.save({"a": torch.ones(1)}, file)
        else:
            with safe_open(file, framework="pt") as handle:
                header = handle.metadata()
            tensors = load_file(file)
            tensors["1.resid_post.basis"] *= 1.1
            save_file(tensors, file, metadata=header)
        card = json.loads((folder / CARD).read_text())
        card["vectors"][1]["sha256"] = set_files._sha256(file)
        (folder / CARD).write_text(json.dumps(card))
        with pytest.raises(InputError, match=r"vector_1\.safetensors: (a pickle|rows are not orthonormal)"):
            SteeringSet.load(folder)

    def test_directions_that_nearly_agree_are_refused_once_joint(self, tmp_path):
        folder = SteeringSet([FIRST, clamp(1.0, 0.1)], joint=False).save(tmp_path / "set")
        SteeringSet.load(folder)
        with pytest.raises(InputError, match=r"set: vectors 0 and 1 at 1\.resid_post: \|cos\| 0\.995"):
            SteeringSet.load(rewritten(folder, joint=True))

    def test_another_model_is_refused_with_the_file_and_other_weights_on_request_a_warning(self, subject, tmp_path):
        known = model_fingerprint(subject)
        others = {"weights": "0" * 64}, {"model_type": "another"}, {"n_layers": 4}
        for change, message in zip(others, ("its weights", "model type", "number of blocks"), strict=True):
            vectors = [
                replace(FIRST, metadata={"fingerprint": known}),
                replace(SECOND, metadata={"fingerprint": known | change}),
            ]
            folder = SteeringSet(vectors).save(tmp_path / message)
            assert len(SteeringSet.load(folder).vectors) == 2  # without a subject
            with pytest.raises(InputError, match=rf"vector_1\.safetensors: .*{message}"):
                SteeringSet.load(folder, subject)
        with pytest.warns(UserWarning, match="its weights"):
            loaded = SteeringSet.load(tmp_path / "its weights", subject, allow_other_weights=True)
        with pytest.warns(UserWarning, match="its weights"), loaded.applied(subject):
            pass
        with pytest.raises(InputError, match=r"vector 1: .*its weights"):
            SteeringSet.load(tmp_path / "its weights").applied(subject)

    def test_another_width_and_a_layer_that_is_not_there(self, subject, tmp_path):
        narrow = SteeringVector.adding(torch.ones(16), Site(1))
        for vector, message in ((narrow, "hidden size 32"), (clamp(1.0, site=Site(3)), "layer 3 is not in")):
            folder = SteeringSet([vector]).save(tmp_path / message)
            with pytest.raises(InputError, match=rf"vector_0\.safetensors: .*{message}"):
                SteeringSet.load(folder, subject)

    def test_one_vector_is_not_read_from_a_set(self, folder):
        with pytest.raises(InputError, match=r"a set of vectors, expected one; name a file in it"):
            SteeringVector.load(folder)


class TestTogether:
    def test_files_and_sets_act_in_the_order_given(self, subject, tmp_path):
        folder = SteeringSet([FIRST]).save(tmp_path / "set")
        file = SECOND.save(tmp_path / "second")
        for paths, expected in (((folder, file), (1.24, 0.32)), ((file, folder), (1.0, 0.8))):
            assert from_zero(subject, read_together(paths, joint=False)) == pytest.approx(expected, abs=1e-5)
            assert from_zero(subject, read_together(paths)) == pytest.approx((1.0, 0.5), abs=1e-5)

    def test_a_saved_set_says_itself_whether_it_is_joint(self, tmp_path):
        folder = SteeringSet([FIRST, SECOND], joint=False).save(tmp_path / "set")
        assert read_together([folder]).joint is False
        assert read_together([folder], joint=True).joint is True
        file = FIRST.save(tmp_path / "first")
        with pytest.raises(InputError, match="one is a sequential set and another is not"):
            read_together([folder, file])
        assert read_together([folder, file], joint=False).joint is False

    def test_a_layer_is_chosen_of_the_first(self, tmp_path):
        folder = SteeringSet([FIRST, clamp(1.0, site=Site(2)), SECOND]).save(tmp_path / "set")
        assert [vector.site.layer for vector in read_vectors(folder, layer=1)] == [1, 1]
        found = read_together([folder, folder], layer=2, joint=False)
        assert [vector.site.layer for vector in found.vectors] == [2, 1, 2, 1]
        with pytest.raises(InputError, match="no vector of layer 0; it holds those of 1, 2, 1"):
            read_together([folder], layer=0)

    def test_what_cannot_act_together_is_refused_with_the_files(self, tmp_path):
        first, near = FIRST.save(tmp_path / "first"), clamp(1.0, 0.1).save(tmp_path / "near")
        with pytest.raises(
            InputError, match=r"first\.safetensors, .*near\.safetensors: vectors 0 and 1 .*--sequential"
        ):
            read_together([first, near])

    def test_a_folder_that_is_neither_set_nor_weights_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="a folder that holds neither a set of vectors"):
            read_vectors(tmp_path)


class TestNumbers:
    @pytest.mark.parametrize("strengths", [[], [1.0], [1.0, 2.0, 3.0]])
    def test_another_number_of_strengths_is_refused_with_both_numbers(self, subject, strengths):
        with pytest.raises(InputError, match=f"{len(strengths)} strengths for 2 vectors; expected one each"):
            SteeringSet([FIRST, SECOND]).applied(subject, strengths)

    def test_vectors_of_several_widths_are_no_set(self):
        with pytest.raises(InputError, match=r"vectors of widths 32, 16: .* expected one width"):
            SteeringSet([FIRST, SteeringVector.adding(torch.ones(16), Site(1))])

    def test_cosines_are_of_every_two_vectors_at_one_site(self):
        add = SteeringVector.adding(torch.eye(32)[1], Site(1))
        facts = set_facts(SteeringSet([FIRST, SECOND, clamp(1.0, site=Site(2)), add]))
        found = {(pair["first"], pair["second"]): pair["cosine"] for pair in facts["cosines"]}
        assert found == pytest.approx({(0, 1): 0.6, (0, 3): 0.0, (1, 3): 0.8}, abs=1e-6)
        assert [notice[:21] for notice in facts["notices"]] == ["vectors 0 and 1 at 1."]
