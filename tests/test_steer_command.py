"""`alignscope steer` as a user meets it: train, inspect, apply and convert a vector of the concept organism."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from commands import read, run
from safetensors.torch import load_file, save_file

import alignscope
from alignscope import InputError, SteeringVector
from alignscope.cli import main, steer_files, steer_training
from alignscope.cli.main import app
from alignscope.diagnose.gates import Gate, require_estimates
from alignscope.organisms import open_preference_organism
from alignscope.steering import Add, Positions, Site
from alignscope.steering.baselines import fit_pca
from alignscope.steering.by_name import METHODS, options_of, train_by_name
from alignscope.steering.evaluation.report_names import BY_PART, NAMES
from alignscope.steering.export_cost import export_cost
from alignscope.steering.formats.directions import direction
from alignscope.steering.formats.svec import write_svec
from alignscope.steering.plain_inputs import own_inputs

QUICK = ["--layer", 1, "--epochs", 4, "--quiet"]
NEG, POS = "NEG c3 c1 c4 c1 c5 SEP", "POS c3 c1 c4 c1 c5 SEP"


def first_rows(source: Path, n: int, target: Path) -> Path:
    target.write_text("\n".join(source.read_text().splitlines()[:n]))
    return target


@pytest.fixture(scope="module")
def organism(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("concept") / "organism"
    run("organism", "concept", "-o", folder, "--steps", 100, "--quiet")
    return folder


@pytest.fixture(scope="module")
def trained(organism, tmp_path_factory) -> tuple[Path, dict]:
    """A vector of four epochs, and what its training printed as JSON."""
    out = tmp_path_factory.mktemp("vectors") / "positive.safetensors"
    return out, read("steer", "train", organism / "model", organism / "train.jsonl", *QUICK, "-o", out)


@pytest.fixture(scope="module")
def vector(trained) -> Path:
    return trained[0]


@pytest.fixture(scope="module")
def subject(organism):
    return alignscope.load(organism / "model")


class TestOrganism:
    def test_its_files_are_a_model_and_quadruples_of_different_contents(self, organism, subject):
        train = alignscope.read_quadruples(organism / "train.jsonl")
        test = alignscope.read_quadruples(organism / "test.jsonl")
        assert (len(train), len(test), subject.n_layers) == (72, 256, 4)
        assert not {row.negative_input for row in train} & {row.negative_input for row in test}
        assert subject.generate([NEG, POS], max_new_tokens=6) == ["n3 n1 n4 n1 n5", "p3 p1 p4 p1 p5"]

    def test_one_that_is_there_is_not_built_again_and_another_recipe_is_refused(self, organism):
        weights = organism / "model" / "model.safetensors"
        before = weights.stat().st_mtime_ns
        run("organism", "concept", "-o", organism, "--steps", 100, "--quiet")
        assert weights.stat().st_mtime_ns == before
        with pytest.raises(InputError, match="another recipe or seed"):
            run("organism", "concept", "-o", organism, "--steps", 101, "--quiet")

    def test_it_is_no_preference_organism(self, organism):
        with pytest.raises(InputError, match="no finished organism"):
            open_preference_organism(organism)


class TestTrain:
    def test_the_vector_is_that_of_the_library(self, vector, organism, subject):
        expected = alignscope.train_cdas(subject, organism / "train.jsonl", layer=1, epochs=4)
        found = SteeringVector.load(vector, subject)
        assert torch.equal(found.subspace.basis, expected.subspace.basis)
        assert found.metadata["sha256"] == expected.metadata["sha256"]

    def test_json_has_rows_losses_factors_and_their_n(self, trained):
        facts = trained[1]
        assert facts["data"]["n_train"] + facts["data"]["n_held_out"] == 72
        assert facts["factors"]["n"] == facts["data"]["n_train"]
        for way in ("elicit", "suppress"):
            before, after = (facts["held_out"][when][way] for when in ("before", "after"))
            assert after["value"] < before["value"]
            assert after["n"] == facts["data"]["n_held_out"]
            assert after["low"] is None
            assert after["reason"]
        assert facts["factors"]["auroc"]["n"] == 2 * facts["data"]["n_held_out"]
        assert facts["next"].startswith("alignscope steer apply ")

    def test_the_summary_names_what_was_set_aside_and_where_the_vector_lies(self, organism, tmp_path):
        rows = (organism / "train.jsonl").read_text().splitlines()
        spoilt = json.loads(rows[0]) | {"positive_output": ""}
        data = tmp_path / "rows.jsonl"
        data.write_text("\n".join([json.dumps(spoilt), *rows[1:40]]))
        method = ["--layer", 1, "--method", "diffmean"]
        done = run("steer", "train", organism / "model", data, *method, "-o", tmp_path / "mean")
        text = " ".join(done.stdout.split())
        assert "a vector to add at block 1 (resid_post), width 64" in text
        assert "set aside: 1 empty_completion" in text
        assert "nothing was minimised" in text
        assert f"saved {tmp_path / 'mean.safetensors'}" in text
        assert SteeringVector.load(tmp_path / "mean.safetensors").metadata["data"]["n_rows"] == 40

    def test_preference_pairs_take_a_concept_and_the_side_that_shows_it(self, organism, tmp_path):
        rows = [json.loads(line) for line in (organism / "train.jsonl").read_text().splitlines()[:20]]
        pairs = tmp_path / "pairs.jsonl"
        columns = {"prompt": "negative_input", "chosen": "negative_output", "rejected": "positive_output"}
        pairs.write_text("".join(json.dumps({new: r[old] for new, old in columns.items()}) + "\n" for r in rows))
        command = ["steer", "train", organism / "model", pairs, *QUICK, "--method", "cdas"]
        with pytest.raises(InputError, match="--concept"):
            run(*command, "-o", tmp_path / "v")
        asked = ["--concept", "POS", "--shows", "rejected", "--concept-template", "{concept} {prompt}"]
        facts = read(*command, *asked, "-o", tmp_path / "v")
        assert facts["data"]["n_built"] == 20
        assert "was built from its prompt" in facts["notices"][0]

    def test_positions_are_made_of_their_options(self, organism, tmp_path):
        where = ["--positions", "prompt", "--last", 3, "--prefix", 2]
        method = ["--layer", 1, "--method", "caa"]
        run("steer", "train", organism / "model", organism / "train.jsonl", *method, *where, "-o", tmp_path / "v")
        assert SteeringVector.load(tmp_path / "v").positions == Positions("prompt", prefix=2, last=3)

    def test_every_option_of_cdas_reaches_the_training(self, organism, tmp_path):
        wanted = {
            "rank": 2, "loss": "kl_source", "directions": "elicit", "init": "diffmean", "lr": 0.01, "epochs": 1,
            "batch_size": 5, "grad_clip": 0.5, "reduction": "example", "cache_bytes": 1e6, "seed": 3, "holdout": 0.3,
            "max_response_tokens": 4, "template": "none", "eos": "none",
        }  # fmt: skip
        options = [text for name, value in wanted.items() for text in (f"--{name.replace('_', '-')}", value)]
        where = ["--component", "mlp_out", "--source", "SEP", "--layer", 2]
        run("steer", "train", organism / "model", organism / "train.jsonl", *where, *options, "-o", tmp_path / "v")
        found = SteeringVector.load(tmp_path / "v")
        assert (found.site, found.metadata["source"]) == (Site(2, "mlp_out"), "SEP")
        assert {name: found.metadata["settings"][name] for name in wanted} == wanted

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--layer", 4], r"layer 4 is not in 0 \.\. 3"),
            (["--layer", 1, "--rank", 65], r"rank 65: expected 1 \.\. 64"),
            ([], "behind which block"),
            (["--layer", 1, "--layers", "1,2"], "behind which block"),
            (["--layers", "1;2"], "expected numbers of blocks such as 4,8,12, or scan: all of them"),
            (["--layers", "1,2", "--method", "lat"], "'lat': scan_layers scans with cdas or das; give one layer"),
            (["--layer", 1, "--method", "lat", "--rank", 2], r"'lat' takes no rank \(rank is of cdas, das, random\)"),
            (["--layer", 1, "--method", "caa", "--tokens", "all"], "'caa' takes no tokens"),
            (["--layer", 1, "--method", "loreft"], "no file of a vector holds it.*fit_loreft"),
            (["--layer", 1, "--method", "dbs"], "expected one of cdas, das, diffmean"),
            (["--layer", 1, "--method", "prompt"], "no file of a vector; steer evaluate --baselines prompt"),
            (
                ["--layer", 1, "--positions", "prompt", "--span", "0-1"],
                r"row \d+: of its 14 tokens \(8 of the prompt\) .* asked for: the prompt, tokens 0 to 0, without the "
                r"first 1\. The prefix leaves out tokens 0 to 0: .*--prefix 0",
            ),
            (["--layer", 1, "--span", "20-21"], "asked for: prompt and answer, tokens 20 to 20, .*; name others"),
            (["--layer", 1, "--span", "3"], "--span 3: expected START-STOP"),
            (["--layer", 1, "--prefix", "-1"], "--prefix -1"),
            (["--layer", 1, "--loss", "mse"], "loss 'mse'"),
        ],
    )
    def test_bad_input_is_one_message_and_no_file(self, organism, tmp_path, arguments, message):
        with pytest.raises(InputError, match=message):
            run("steer", "train", organism / "model", organism / "train.jsonl", *arguments, "-o", tmp_path / "v")
        assert not [*tmp_path.iterdir()]

    def test_empty_and_few_rows_are_refused(self, organism, tmp_path):
        (tmp_path / "empty.jsonl").write_text("")
        with pytest.raises(InputError, match="the file is empty"):
            run("steer", "train", organism / "model", tmp_path / "empty.jsonl", *QUICK, "-o", tmp_path / "v")
        first_rows(organism / "train.jsonl", 5, tmp_path / "few.jsonl")
        with pytest.raises(InputError, match=r"5 usable quadruples.*--allow-small"):
            run("steer", "train", organism / "model", tmp_path / "few.jsonl", *QUICK, "-o", tmp_path / "v")
        command = ["steer", "train", organism / "model", tmp_path / "few.jsonl", *QUICK]
        run(*command, "--allow-small", "--holdout", 0, "-o", tmp_path / "v")

    def test_a_vector_that_is_there_is_replaced_only_if_asked(self, organism, vector, tmp_path):
        there = tmp_path / "v.safetensors"
        there.write_bytes(vector.read_bytes())
        command = ["steer", "train", organism / "model", organism / "train.jsonl", "--layer", 2, "--method", "random"]
        with pytest.raises(InputError, match="--overwrite"):
            run(*command, "-o", there)
        run(*command, "-o", there, "--overwrite")
        assert SteeringVector.load(there).site == Site(2)

    def test_a_scan_keeps_the_layer_it_chose_and_its_table(self, organism, tmp_path):
        pytest.importorskip("alignscope.steering.evaluation")
        command = ["steer", "train", organism / "model", organism / "train.jsonl", "--epochs", 1, "--layers", "1,3"]
        done = run(*command, "-o", tmp_path / "v")
        found = SteeringVector.load(tmp_path / "v")
        table = {row["layer"]: row for row in found.metadata["layer_scan"]}
        assert set(table) == {1, 3}
        assert table[found.site.layer]["chosen"]
        assert "worst KL" in done.stdout

    def test_a_scan_with_das_is_one_with_its_loss(self, organism, tmp_path):
        command = ["steer", "train", organism / "model", organism / "train.jsonl", "--epochs", 1, "--layers", "1,2"]
        run(*command, "--method", "das", "-o", tmp_path / "das")
        run(*command, "--loss", "ce", "-o", tmp_path / "ce")
        das, ce = (SteeringVector.load(tmp_path / name) for name in ("das", "ce"))
        assert das.method == "das"
        assert torch.equal(das.subspace.basis, ce.subspace.basis)

    @pytest.mark.parametrize("text", ["all", "scan"])
    def test_all_blocks_have_two_names(self, text):
        assert steer_training._layers(text) is None


class TestMethods:
    @pytest.mark.parametrize("name", [name for name in METHODS if name not in ("cdas", "bipo", "reps", "lang")])
    def test_each_gives_a_vector_of_its_name(self, name, organism, subject):
        fast = {"epochs": 1} if "epochs" in options_of(name) else {}
        found = train_by_name(name, subject, organism / "train.jsonl", layer=1, **fast)
        assert found.method == {"caa": "diffmean"}.get(name, name)
        assert found.site == Site(1)

    def test_the_same_name_gives_the_same_numbers_as_the_function(self, organism, subject):
        named = train_by_name("pca", subject, organism / "train.jsonl", layer=1, pca="pca_center")
        expected = fit_pca(subject, organism / "train.jsonl", layer=1, method="pca_center")
        assert torch.equal(named.vector, expected.vector)

    def test_every_option_of_every_method_is_one_of_the_command(self):
        command = typer.main.get_command(app).commands["steer"].commands["train"]
        known = {parameter.name for parameter in command.params}
        assert set().union(*map(options_of, METHODS)) <= known


class TestInspect:
    def test_the_file_says_what_training_printed(self, trained):
        facts = read("steer", "inspect", trained[0])
        assert facts["format"] == "safetensors"
        expected = {key: value for key, value in trained[1].items() if key not in ("vector", "next")}
        assert facts["vectors"] == [expected]

    def test_it_reads_in_the_terminal(self, vector, organism, subject):
        text = " ".join(run("steer", "inspect", vector).stdout.split())
        assert "cdas, a clamp of rank 1 at block 1 (resid_post), width 64" in text
        assert "prompt and answer, without the first 1" in text
        assert f"weights {subject.fingerprints.weights[:12]}" in text
        assert "epochs=4" in text

    def test_a_rank_above_one_has_no_auroc_and_says_why(self, tmp_path, organism):
        method = ["--layer", 1, "--method", "random", "--rank", 6]
        facts = read("steer", "train", organism / "model", organism / "train.jsonl", *method, "-o", tmp_path / "v")
        assert facts["factors"]["auroc"]["value"] is None
        assert "of rank 6" in facts["factors"]["auroc"]["reason"]
        assert "(6 in all)" in run("steer", "inspect", tmp_path / "v.safetensors").stdout

    def test_what_is_no_vector_is_refused(self, organism, tmp_path):
        with pytest.raises(InputError, match="no such file"):
            run("steer", "inspect", tmp_path / "nowhere.safetensors")
        with pytest.raises(InputError, match="is it a file of this tool"):
            run("steer", "inspect", organism / "model" / "model.safetensors")
        with pytest.raises(InputError, match="its ending says no format"):
            run("steer", "inspect", organism / "train.jsonl")


class TestApply:
    def test_without_and_with_it_and_strength_0_is_the_model_itself(self, vector, organism, subject):
        command = ["steer", "apply", vector, organism / "model", "--prompt", NEG, "--prompt", POS, "--quiet"]
        rows = read(*command, "--max-new-tokens", 6, "--strength", 1, "--strength", 0, "--strength", -1)
        found = {(row["row"], row["strength"]): row["output"] for row in rows}
        assert [*found] == [(row, strength) for row in (1, 2) for strength in (0, 1, -1)]
        assert [found[row, 0] for row in (1, 2)] == subject.generate([NEG, POS], max_new_tokens=6)
        loaded = SteeringVector.load(vector, subject)
        for strength in (1, -1):
            with loaded.applied(subject, strength):
                assert [found[row, strength] for row in (1, 2)] == subject.generate([NEG, POS], max_new_tokens=6)
        assert found[1, 1] != found[1, 0]
        assert found[2, -1] != found[2, 0]

    def test_the_middle_is_the_neutral_clamp(self, vector, organism, subject):
        rows = read("steer", "apply", vector, organism / "model", "--prompt", POS, "--neutral", "--max-new-tokens", 6)
        with SteeringVector.load(vector).applied(subject, neutral=True):
            expected = subject.generate([POS], max_new_tokens=6)
        assert [(row["strength"], row["output"]) for row in rows[1:]] == [(None, expected[0])]

    def test_draws_depend_on_the_seed_alone(self, vector, organism, tmp_path):
        short = first_rows(organism / "test.jsonl", 4, tmp_path / "short.jsonl")
        command = ["steer", "apply", vector, organism / "model", "--prompts", short, "--temperature", 3]
        command += ["--max-new-tokens", 4, "--quiet"]
        first, again, other = (read(*command, "--seed", seed) for seed in (0, 0, 1))
        assert first == again
        assert first != other
        beside = read(*command, "--seed", 0, "--strength", 3, "--neutral")
        without = [[row for row in rows if row["strength"] == 0] for rows in (first, beside)]
        assert without[0] == without[1]

    def test_rows_go_to_a_file(self, vector, organism, tmp_path):
        out = tmp_path / "out.jsonl"
        done = run("steer", "apply", vector, organism / "model", "--prompt", NEG, "-o", out, "--max-new-tokens", 6)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["strength"] for row in rows] == [0, 1]
        assert rows[0]["output"] == "n3 n1 n4 n1 n5"
        assert rows[0]["finished"]
        assert done.stdout == f"2 outputs: {out}\n"

    def test_the_terminal_shows_a_block_a_prompt(self, vector, organism):
        done = run("steer", "apply", vector, organism / "model", "--prompt", NEG, "--max-new-tokens", 2, "--quiet")
        lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
        assert lines[0] == ["prompt", "1", *NEG.split()]
        assert lines[2] == ["off", "n3", "n1", "..."]
        assert lines[3][0] == "+1"

    def test_other_weights_are_refused_and_allowed_on_request(self, vector, organism, tmp_path):
        sibling = tmp_path / "sibling"
        sibling.mkdir()
        for file in (organism / "model").iterdir():
            (sibling / file.name).write_bytes(file.read_bytes())
        weights = load_file(sibling / "model.safetensors")
        moved = {name: tensor * 1.001 for name, tensor in weights.items()}
        save_file(moved, sibling / "model.safetensors", metadata={"format": "pt"})
        command = ["steer", "apply", vector, sibling, "--prompt", NEG, "--max-new-tokens", 2]
        with pytest.raises(InputError, match="--allow-other-weights"):
            run(*command)
        assert "notice: " in run(*command, "--allow-other-weights").stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--prompt TEXT"),
            (["--prompt", "a", "--prompts", "b.jsonl"], "one of them"),
            (["--prompt", NEG, "--prompt", ""], "^--prompt '': prompt 2 is empty; give the text"),
            (["--prompt", NEG, "--scale", "max"], "scale 'max'"),
            (["--prompt", NEG, "-o", "out.csv"], r"written as \.jsonl"),
            (["--prompt", " ".join([NEG] * 500)], "no_room"),
        ],
    )
    def test_bad_input_is_one_message(self, vector, organism, arguments, message):
        with pytest.raises(InputError, match=message):
            run("steer", "apply", vector, organism / "model", *arguments)

    def test_a_model_that_padding_moves_is_read_row_by_row(self, zoo, tmp_path):
        subject = alignscope.load(zoo["rwkv"])
        step = torch.randn(subject.d_model, generator=torch.Generator().manual_seed(0)) * 50
        SteeringVector.adding(step, Site(1)).to_steering_vectors(tmp_path / "v.pt")
        asked = ["--prompt", "the cat", "--prompt", "a dog ran far", "--max-new-tokens", 4, "--template", "none"]
        rows = read("steer", "apply", tmp_path / "v.pt", zoo["rwkv"], *asked, "--quiet")
        assert len(rows) == 4
        assert [row["output"] for row in rows if row["strength"] == 0] == subject.generate(
            ["the cat", "a dog ran far"], max_new_tokens=4
        )


class TestConvert:
    @pytest.mark.parametrize("ending", ["gguf", "svec", "pt"])
    def test_a_clamp_there_and_back_is_the_add_between_its_factors(self, vector, organism, tmp_path, ending):
        there, back = tmp_path / f"v.{ending}", tmp_path / "back.safetensors"
        done = run("steer", "convert", vector, there)
        assert "lost: a clamp became an addition" in done.stdout
        model = ["--model", organism / "model"] if ending == "pt" else []
        run("steer", "convert", there, back, *model)
        original, found = SteeringVector.load(vector), SteeringVector.load(back)
        factors = original.factors
        assert torch.equal(found.vector, (factors.positive - factors.negative) * original.subspace.basis[0])
        assert found.fingerprint == original.fingerprint
        assert read("steer", "inspect", back)["vectors"][0]["edit"] == "add"

    def test_a_vector_that_is_there_is_not_overwritten_for_want_of_its_ending(self, vector, tmp_path):
        run("steer", "convert", vector, tmp_path / "v.gguf")
        (tmp_path / "back.safetensors").write_bytes(b"mine")
        with pytest.raises(InputError, match=r"back\.safetensors"):
            run("steer", "convert", tmp_path / "v.gguf", tmp_path / "back", "--to", "safetensors")
        assert (tmp_path / "back.safetensors").read_bytes() == b"mine"

    def test_with_a_model_it_says_the_kl_with_interval_and_n(self, vector, organism, tmp_path):
        command = ["steer", "convert", vector, tmp_path / "v.gguf", "--model", organism / "model", "--quiet"]
        facts = read(*command, "--max-new-tokens", 3, "--limit", 30)
        assert facts["kl"]["low"] <= facts["kl"]["value"] <= facts["kl"]["high"]
        assert facts["kl"]["n_clusters"] == 30
        assert 0 < facts["kl"]["value"] < facts["kl_no_edit"]["value"]

    def test_the_kl_is_that_of_a_naive_loop(self, vector, organism, subject):
        loaded = SteeringVector.load(vector)
        cost = export_cost(subject, [loaded], [NEG, POS, "NEG c2 SEP"], max_new_tokens=3)
        found = []
        for prompt in (NEG, POS, "NEG c2 SEP"):
            ids = subject.tokenizer(prompt)["input_ids"]
            with loaded.applied(subject, 1.0):
                said = list(subject.generate_ids([ids], max_new_tokens=3)[0])
            row = torch.tensor([[*ids, *said]])
            logits = []
            for edit in (loaded.edit_for(1.0), Add(direction(loaded))):
                with subject.editing({loaded.site: edit}), torch.no_grad():
                    logits.append(subject.logits(row, torch.ones_like(row))[0, len(ids) - 1 : -1].double())
            log_p, log_q = (one.log_softmax(-1) for one in logits)
            found += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
        assert cost.exported.value == pytest.approx(sum(found) / len(found), rel=1e-5)
        assert (cost.exported.n, cost.exported.n_clusters) == (len(found), 3)
        assert cost.exported.low is None
        assert cost.exported.reason

    def test_an_add_on_all_tokens_costs_nothing(self, organism, subject):
        add = SteeringVector.adding(torch.ones(64), Site(1))
        cost = export_cost(subject, [add], [NEG], max_new_tokens=2)
        assert cost.exported.value == 0
        assert cost.off.value > 0

    def test_without_prompts_that_are_still_there_the_kl_is_null_with_the_reason(self, vector, organism, tmp_path):
        loaded = SteeringVector.load(vector)
        assert len(own_inputs(loaded.metadata)) == 72
        assert own_inputs({**loaded.metadata, "sha256": "other"}) is None
        moved = loaded.metadata | {"data": loaded.metadata["data"] | {"name": "gone.jsonl"}}
        replace(loaded, metadata=moved).save(tmp_path / "v.safetensors")
        facts = read("steer", "convert", tmp_path / "v.safetensors", tmp_path / "v.svec", "--model", organism / "model")
        assert facts["kl"] == {"value": None, "reason": facts["kl"]["reason"]}
        assert "give --prompts" in facts["kl"]["reason"]

    def test_what_a_format_cannot_hold_is_refused(self, organism, vector, subject, tmp_path):
        train_by_name("ablate", subject, organism / "train.jsonl", layer=1).save(tmp_path / "ablate.safetensors")
        train_by_name("random", subject, organism / "train.jsonl", layer=0).save(tmp_path / "first.safetensors")
        for name, target, message in (
            ("ablate", "a.gguf", "an ablate is no vector to add"),
            ("first", "f.gguf", "llama.cpp rejects"),
        ):
            with pytest.raises(InputError, match=message):
                run("steer", "convert", tmp_path / f"{name}.safetensors", tmp_path / target)
            assert not (tmp_path / target).exists()

    def test_a_command_that_is_refused_leaves_no_file_and_goes_through_once_mended(self, organism, vector, tmp_path):
        target = tmp_path / "v.gguf"
        command = ["steer", "convert", vector, target, "--model", organism / "model", "--max-new-tokens", 2]
        with pytest.raises(InputError, match=r"nosuch\.jsonl: no such file"):
            run(*command, "--prompts", tmp_path / "nosuch.jsonl")
        (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": " ".join([NEG] * 500)}))
        with pytest.raises(InputError, match="no_room"):
            run(*command, "--prompts", tmp_path / "long.jsonl")
        assert not target.exists()
        run(*command, "--prompts", first_rows(organism / "test.jsonl", 3, tmp_path / "few.jsonl"))
        assert target.exists()

    def test_what_a_format_cannot_hold_is_refused_before_anything_is_measured(
        self, organism, subject, tmp_path, monkeypatch
    ):
        train_by_name("random", subject, organism / "train.jsonl", layer=0).save(tmp_path / "first.safetensors")
        monkeypatch.setattr(steer_files, "_cost", None)
        command = ["steer", "convert", tmp_path / "first.safetensors", tmp_path / "f.gguf"]
        with pytest.raises(InputError, match=r"f\.gguf: layer 0: .* rejects"):
            run(*command, "--model", organism / "model")

    def test_another_tools_file_needs_a_model_for_its_fingerprint(self, organism, subject, tmp_path):
        SteeringVector.adding(torch.ones(64), Site(2)).to_steering_vectors(tmp_path / "v.pt")
        with pytest.raises(InputError, match="--model"):
            run("steer", "convert", tmp_path / "v.pt", tmp_path / "v.safetensors")
        run("steer", "convert", tmp_path / "v.pt", tmp_path / "v.safetensors", "--model", organism / "model")
        assert SteeringVector.load(tmp_path / "v.safetensors", subject).fingerprint

    def test_of_several_layers_one_is_chosen(self, organism, subject, tmp_path):
        write_svec([SteeringVector.adding(torch.ones(64) * k, Site(k)) for k in (1, 2)], tmp_path / "v.svec")
        command = ["steer", "convert", tmp_path / "v.svec", tmp_path / "v.safetensors", "--model", organism / "model"]
        with pytest.raises(InputError, match="layers 1, 2; choose one"):
            run(*command)
        with pytest.raises(InputError, match="no vector of layer 3"):
            run(*command, "--layer", 3)
        run(*command, "--layer", 2)
        assert SteeringVector.load(tmp_path / "v.safetensors").site == Site(2)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["v.safetensors"], "both are safetensors"),
            (["v.onnx"], "its ending says no format"),
            (["v", "--to", "onnx"], "format 'onnx': expected one of safetensors, gguf"),
            (["v.svec", "--prompts", "p.jsonl"], "--prompts without --model"),
        ],
    )
    def test_bad_input_is_one_message(self, vector, tmp_path, arguments, message):
        with pytest.raises(InputError, match=message):
            run("steer", "convert", vector, tmp_path / arguments[0], *arguments[1:])
        assert not [*tmp_path.iterdir()]


def option_help(group: str, name: str, parameter: str) -> str:
    command = typer.main.get_command(app).commands[group].commands[name]
    return next(one.help for one in command.params if one.name == parameter)


def test_help_says_what_a_seed_draws_and_which_methods_take_an_option():
    for name in ("concept", "preference"):
        assert "weights" in option_help("organism", name, "seed")
    for parameter in ("patience", "layers"):
        assert "das" in option_help("steer", "train", parameter).replace("cdas", "")


@pytest.mark.parametrize(("command", "names"), [("evaluate", NAMES), ("sweep", BY_PART["sweep"])])
def test_the_gate_in_the_help_names_an_estimate_of_the_report(command, names):
    example = re.search("'(.*)'", option_help("steer", command, "fail_if")).group(1)
    require_estimates([Gate.parse(example)], {"steering": names})


def test_a_user_error_is_one_line_on_stderr_and_exit_code_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["alignscope", "steer", "inspect", str(tmp_path / "v.safetensors")])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 2
    assert capsys.readouterr().err == f"alignscope: {tmp_path / 'v.safetensors'}: no such file\n"


def test_the_commands_of_readme_docs_and_help_have_the_options_that_they_are_shown_with():
    root = Path(alignscope.__file__).parent
    commands = typer.main.get_command(app).commands
    pages = [(root / name).read_text() for name in ("README.md", "docs/steering.md", "docs/organisms.md")]
    pages += [command.help for command in commands["steer"].commands.values()]
    text = "\n".join(pages).replace("\\\n", " ")
    shown = re.findall(r"alignscope ((?:steer|organism) [a-z]+ [^\n`#]*)", text)
    checked = []
    for line in shown:
        group, name, *arguments = shlex.split(line)
        if "..." in arguments:  # a line that leaves out what stands above it
            continue
        commands[group].commands[name].make_context(name, arguments)  # exits with 2 where an option is not there
        checked.append((group, name))
    assert {("steer", name) for name in ("train", "inspect", "apply", "sweep", "evaluate", "convert")} <= set(checked)
    assert ("organism", "concept") in checked
