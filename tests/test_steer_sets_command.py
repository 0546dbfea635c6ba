"""Several vectors from the shell, a saved set or files side by side; and AxBench's weights become vectors of ours."""

import json
from pathlib import Path

import pytest
import torch
from commands import read, run

import alignscope
from alignscope import InputError, SteeringVector
from alignscope.steering import Factors, Site, SteeringSet, Subspace
from alignscope.steering.conversion import read_together
from alignscope.steering.model_fit import model_fingerprint

ASKED = ["--prompt", "the cat", "--prompt", "a dog ran far", "--max-new-tokens", 6, "--template", "none", "--quiet"]
PROMPTS = ["the cat", "a dog ran far"]
HUGE = 200.0  # so that a clamp changes what is said
ROWS = torch.randn(3, 64, generator=torch.Generator().manual_seed(5))


def steered(rows: list[dict], strength: float) -> list[str]:
    return [row["output"] for row in rows if row["strength"] == strength]


@pytest.fixture(scope="module")
def subject(zoo):
    return alignscope.load(zoo["llama"])


@pytest.fixture(scope="module")
def files(subject, tmp_path_factory) -> list[Path]:
    """Two clamps behind block 1 of |cos| 0.8, one of them far away."""
    folder = tmp_path_factory.mktemp("vectors")
    known = {"fingerprint": model_fingerprint(subject)}
    first, second = torch.linalg.qr(ROWS[:2].T)[0].T
    found = []
    for name, direction, far in (("first", first, 1.0), ("second", 0.8 * first + 0.6 * second, -1.0)):
        factors = Factors(torch.tensor([far * HUGE]), torch.tensor([-far * HUGE]), None, 8)
        vector = SteeringVector(site=Site(1), subspace=Subspace(direction), factors=factors, metadata=known)
        found.append(vector.save(folder / name))
    return found


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory) -> Path:
    vectors = [SteeringVector.load(file) for file in files]
    return SteeringSet(vectors, joint=False).save(tmp_path_factory.mktemp("sets") / "set")


class TestApply:
    def test_a_saved_set_says_what_it_says_in_python_at_one_strength_for_all(self, folder, zoo, subject):
        rows = read("steer", "apply", folder, zoo["llama"], *ASKED, "--strength", 1, "--strength", -1)
        assert steered(rows, 0) == subject.generate(PROMPTS, max_new_tokens=6)
        for strength in (1, -1):
            with SteeringSet.load(folder, subject).applied(subject, strength):
                expected = subject.generate(PROMPTS, max_new_tokens=6)
            assert steered(rows, strength) == expected != steered(rows, 0)

    @pytest.mark.parametrize("sequential", [True, False])
    def test_files_side_by_side_are_a_set_in_their_order(self, files, zoo, subject, sequential):
        first, second = files
        extra = ["--sequential"] if sequential else []
        rows = read("steer", "apply", first, zoo["llama"], "--with", second, *ASKED, *extra)
        with SteeringSet([SteeringVector.load(file) for file in files], not sequential).applied(subject):
            assert steered(rows, 1) == subject.generate(PROMPTS, max_new_tokens=6)

    def test_joint_sequential_and_the_order_are_not_the_same(self, files, folder, zoo):
        first, second = files
        asked = ["steer", "apply"]
        joint = read(*asked, first, zoo["llama"], "--with", second, *ASKED)
        sequential = read(*asked, first, zoo["llama"], "--with", second, *ASKED, "--sequential")
        turned = read(*asked, second, zoo["llama"], "--with", first, *ASKED, "--sequential")
        assert len({tuple(steered(rows, 1)) for rows in (joint, sequential, turned)}) == 3
        assert steered(read(*asked, folder, zoo["llama"], *ASKED), 1) == steered(sequential, 1)

    def test_with_may_be_given_again_and_takes_sets_and_files_of_other_tools(self, files, folder, zoo, tmp_path):
        add = SteeringVector.adding(ROWS[2] * 50, Site(2)).to_steering_vectors(tmp_path / "v.pt").path
        paths = [files[1], add, folder]
        given = [part for path in paths[1:] for part in ("--with", path)]
        rows = read("steer", "apply", files[1], zoo["llama"], *given, *ASKED, "--sequential")
        subject = alignscope.load(zoo["llama"])
        with read_together(paths, joint=False).applied(subject):
            assert steered(rows, 1) == subject.generate(PROMPTS, max_new_tokens=6)

    def test_directions_that_overlap_are_a_notice(self, files, zoo):
        done = run("steer", "apply", files[0], zoo["llama"], "--with", files[1], *ASKED)
        assert "notice: vectors 0 and 1 at 1.resid_post overlap: |cos| 0.80" in done.stderr

    def test_a_set_of_one_takes_the_options_of_a_clamp(self, files, zoo, subject, tmp_path):
        alone = SteeringSet([SteeringVector.load(files[0])]).save(tmp_path / "set")
        rows = read("steer", "apply", alone, zoo["llama"], *ASKED, "--scale", "zero", "--strength", 2)
        with SteeringVector.load(files[0]).applied(subject, 2, scale="zero"):
            assert steered(rows, 2) == subject.generate(PROMPTS, max_new_tokens=6)

    def test_what_does_not_fit_is_refused(self, files, folder, zoo):
        asked = [zoo["llama"], *ASKED]
        for arguments, message in (
            ([files[0], *asked, "--sequential"], "--with FILE"),
            ([files[0], *asked, "--with", files[0]], r"\|cos\| 1 is above 0\.95.*--sequential"),
            ([files[0], *asked, "--with", folder], "one is a sequential set and another is not"),
            ([folder, *asked, "--scale", "zero"], "scale: options of one clamp"),
            ([files[0], *asked, "--with", files[0].with_name("none.safetensors")], r"none\.safetensors: no such file"),
            ([folder, zoo["qwen2"], *ASKED], r"vector 0: .*model type qwen2"),
        ):
            with pytest.raises(InputError, match=message):
                run("steer", "apply", *arguments)


class TestInspect:
    def test_it_shows_each_vector_whether_they_are_joint_and_the_cosines(self, folder, files):
        facts = read("steer", "inspect", folder)
        assert (facts["format"], facts["joint"]) == ("set", False)
        site = {"layer": 1, "component": "resid_post"}
        assert facts["cosines"] == [
            {"site": site, "first": 0, "second": 1, "cosine": pytest.approx(0.8, abs=1e-6)},
        ]
        assert len(facts["notices"]) == 1
        for i, file in enumerate(files):
            alone = read("steer", "inspect", file)["vectors"][0]
            assert facts["vectors"][i] == {"file": str(folder / f"vector_{i}.safetensors"), **alone}

    def test_it_reads_in_the_terminal(self, folder):
        text = " ".join(run("steer", "inspect", folder).stdout.split())
        assert f"{folder}: a set of 2, clamps one after another (sequential)" in text
        assert "|cos| 0.8000 of vectors 0 and 1 at block 1 (resid_post)" in text
        assert f"{folder / 'vector_1.safetensors'}: a clamp of rank 1 at block 1" in text

    def test_a_layer_shows_its_vectors_alone(self, files, tmp_path):
        add = SteeringVector.adding(ROWS[2], Site(2))
        mixed = SteeringSet([add, SteeringVector.load(files[0])]).save(tmp_path / "set")
        facts = read("steer", "inspect", mixed, "--layer", 1)
        assert facts["joint"] is True
        assert [Path(one["file"]).name for one in facts["vectors"]] == ["vector_1.safetensors"]
        assert facts["cosines"] == []

    def test_a_changed_file_is_refused(self, files, tmp_path):
        changed = SteeringSet([SteeringVector.load(files[0])]).save(tmp_path / "set")
        (changed / "vector_0.safetensors").write_bytes(files[1].read_bytes())
        with pytest.raises(InputError, match="changed since the set was saved"):
            run("steer", "inspect", changed)


def test_a_report_is_of_one_vector_and_says_so_of_a_set(folder, zoo, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    with pytest.raises(InputError, match="a set of vectors, expected one; name a file in it"):
        run("steer", "evaluate", folder, zoo["llama"], "--quadruples", rows, "--out", tmp_path / "run")


class TestAxBench:
    @pytest.fixture
    def weights(self, tmp_path) -> Path:
        source = tmp_path / "train"
        source.mkdir()
        torch.save(ROWS, source / "DiffMean_weight.pt")
        (source / "config.json").write_text(json.dumps({"model_name": "m", "layer": 1, "component": "res"}))
        (source / "metadata.jsonl").write_text("".join(json.dumps({"concept": name}) + "\n" for name in "abc"))
        return source

    @pytest.mark.parametrize("choice", [["--row", 2], ["--concept", "c"]])
    @pytest.mark.parametrize("name", ["", "DiffMean_weight.pt"])
    def test_a_row_becomes_a_vector_of_ours_with_the_models_fingerprint(
        self, weights, zoo, subject, tmp_path, choice, name
    ):
        out = tmp_path / "c.safetensors"
        run("steer", "convert", weights / name, out, *choice, "--model", zoo["llama"])
        found = SteeringVector.load(out, subject)
        assert torch.equal(found.vector, ROWS[2])
        assert (found.site, found.method, found.metadata["concept"]) == (Site(1), "DiffMean", {"concept": "c"})
        assert found.fingerprint["weights"] == subject.fingerprints.weights

    def test_it_goes_on_to_another_tool_without_loss_and_without_a_model(self, weights, tmp_path):
        facts = read("steer", "convert", weights, tmp_path / "a.gguf", "--row", 0)
        assert facts["lost"] == []
        assert torch.equal(SteeringVector.from_gguf(tmp_path / "a.gguf").vector, ROWS[0])

    def test_the_only_row_need_not_be_chosen(self, weights, zoo, tmp_path):
        torch.save(ROWS[:1], weights / "DiffMean_weight.pt")
        run("steer", "convert", weights, tmp_path / "a.safetensors", "--model", zoo["llama"])
        assert torch.equal(SteeringVector.load(tmp_path / "a.safetensors").vector, ROWS[0])
        assert read("steer", "inspect", weights)["format"] == "axbench"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], r"3 rows; choose one .*--row N or --concept TEXT\); rows: 0 'a', 1 'b', 2 'c'"),
            (["--row", 3], r"\(3, 64\); expected \[concepts, d\] with a row 3"),
            (["--concept", "d"], "0 of 3 rows are of the concept 'd'"),
            (["--row", 1, "--concept", "b"], "give --row or --concept, one of them"),
            (["--row", 1], "which model it belongs to"),
            (["--row", 1, "--layer", 2], "no vector of layer 2; it holds those of 1"),
            (["--to", "axbench"], "format 'axbench': expected one of safetensors, gguf, svec, steering-vectors"),
        ],
    )
    def test_what_is_not_one_row_is_refused(self, weights, tmp_path, arguments, message):
        with pytest.raises(InputError, match=message):
            run("steer", "convert", weights, tmp_path / "v.safetensors", *arguments)
        assert not (tmp_path / "v.safetensors").exists()

    def test_of_several_methods_the_file_is_to_be_named(self, weights, zoo, tmp_path):
        torch.save(-ROWS, weights / "PCA_weight.pt")
        command = ["steer", "convert", weights, tmp_path / "v.safetensors", "--row", 0, "--model", zoo["llama"]]
        with pytest.raises(InputError, match=r"its file in place of the folder; .* DiffMean, PCA"):
            run(*command)
        command[2] = weights / "PCA_weight.pt"
        run(*command)
        assert torch.equal(SteeringVector.load(tmp_path / "v.safetensors").vector, -ROWS[0])

    def test_other_formats_have_no_rows(self, files, tmp_path):
        with pytest.raises(InputError, match="only AxBench's weights have rows to choose"):
            run("steer", "convert", files[0], tmp_path / "v.gguf", "--row", 0)

    def test_weights_that_are_there_are_not_written_over(self, files, weights):
        before = (weights / "DiffMean_weight.pt").read_bytes()
        with pytest.raises(InputError, match="only read"):
            run("steer", "convert", files[0], weights / "DiffMean_weight.pt", "--overwrite")
        assert (weights / "DiffMean_weight.pt").read_bytes() == before

    def test_a_vector_is_not_loaded_of_weights_but_told_how_to_make_one(self, weights):
        for path in (weights, weights / "DiffMean_weight.pt"):
            with pytest.raises(InputError, match=r"another tool \(axbench\); .*alignscope steer convert"):
                SteeringVector.load(path)

    def test_a_set_becomes_a_file_of_another_tool_where_it_has_one_vector_a_layer(self, files, folder, tmp_path):
        with pytest.raises(InputError, match="two vectors, and the format holds one a layer"):
            run("steer", "convert", folder, tmp_path / "v.gguf")
        add = SteeringVector.adding(ROWS[2], Site(2))
        mixed = SteeringSet([add, SteeringVector.load(files[0])]).save(tmp_path / "set")
        run("steer", "convert", mixed, tmp_path / "v.gguf")
        assert [one.site.layer for one in SteeringSet.from_gguf(tmp_path / "v.gguf").vectors] == [1, 2]
