"""Write the pairs and prompts of the real audit: the first rows of the ladder's evaluation split.

python -m benchmarks.ladder_pairs --data FOLDER --pairs 256 --out runs/ladder
"""

import argparse
import json
from pathlib import Path


def evaluation_rows(data: Path, n: int) -> list[dict[str, str]]:
    """The first `n` evaluation rows of split.json, as they stand in hh_harmless/test.jsonl, in the split's order."""
    split = json.loads((data / "models" / "smollm2_hh" / "split.json").read_text(encoding="utf-8"))
    lines = (data / "data" / "hh_harmless" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["id"]: row for row in map(json.loads, lines)}
    return [rows[f"hh-harmless-base-test-{number:04d}"] for number in split["eval"][:n]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with data/ and models/")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = evaluation_rows(arguments.data, arguments.pairs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, content in (("pairs", rows), ("prompts", [{"prompt": row["prompt"]} for row in rows])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        (arguments.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"{len(rows)} pairs: {arguments.out / 'pairs.jsonl'}")


if __name__ == "__main__":
    main()
