from bench.judges.base import load_judge
from bench.judges.judge import JudgeSpec
from bench.references.stored import prepare_reference
from protocols import find_protocol


def test_the_embedded_references_are_made_when_they_are_needed(tmp_path):
    digits = find_protocol("digits")
    table = digits.judges["inception"]
    spec = JudgeSpec("inception", table["kind"], {k: v for k, v in table.items() if k != "kind"})
    judges = {"inception": load_judge(spec, device="cpu", root=digits.path.parent)}
    reference = prepare_reference(digits, judges, tmp_path)
    assert reference.n == 599 and len(reference.labels) == 599
    assert reference.features()["inception.features"].features.shape == (599, 48)
    assert prepare_reference(digits, judges, tmp_path).digest == reference.digest
