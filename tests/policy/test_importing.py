"""Documents become draft policies: nine samples of different make, and what is refused.

Beside each sample stands `NAME.reviewed.md`, the policy that a person made of its draft. What that
person had to correct is listed in `CORRECTED`.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from policyalign_assets.cli.main import main
from policyalign_assets.policy import PolicyError, Rule, examine_file, parse_policy
from policyalign_assets.policy.importing import import_document, read_document

SAMPLES = Path(__file__).parent / "samples"
FILES = (
    "agent-rules.md",
    "bank.pdf",
    "clinic-release.md",
    "hospital.docx",
    "housing.txt",
    "intranet.html",
    "kundendienst.md",
    "law-firm.docx",
    "vendor-usage.md",
)
# By sample: how many of its rules the reviewer gave another kind or action than the draft has.
CORRECTED = {"vendor-usage.md": 1, "bank.pdf": 2}

pytest.importorskip("pypandoc", reason="the extra 'import' is not installed")
pytest.importorskip("pypdf", reason="the extra 'import' is not installed")


def samples_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_samples", SAMPLES / "make_samples.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reading(rule: Rule) -> tuple[object, ...]:
    return (rule.kind, rule.forbids, rule.action, rule.condition, rule.exceptions, rule.severity)


@pytest.mark.parametrize("name", FILES)
def test_a_sample_is_imported_as_its_reviewer_left_it(name: str, tmp_path: Path) -> None:
    made = import_document(SAMPLES / name, tmp_path, "draft")
    folder = tmp_path / "reviewed"
    folder.mkdir()
    reviewed = (SAMPLES / f"{Path(name).stem}.reviewed.md").read_text(encoding="utf-8")
    (folder / "policy.md").write_text(reviewed, encoding="utf-8")
    wanted = {r.rule_id: r for r in parse_policy(tmp_path, "reviewed", "general").rules}
    drafted = {r.rule_id: r for r in made.rules}
    assert drafted.keys() == wanted.keys()
    corrected = [i for i in wanted if reading(wanted[i]) != reading(drafted[i])]
    assert len(corrected) == CORRECTED.get(name, 0)
    assert all(rule.source_place.startswith(f"{name}, ") for rule in wanted.values())


@pytest.mark.parametrize("name", FILES)
def test_a_draft_reads_as_its_document_does(name: str, tmp_path: Path) -> None:
    made = import_document(SAMPLES / name, tmp_path, "draft")
    again = examine_file(made.path).document
    assert again is not None
    assert [(r.rule_id, reading(r)) for r in again.rules] == [
        (r.rule_id, reading(r)) for r in made.rules
    ]


def test_a_draft_is_not_used_until_somebody_has_reviewed_it(tmp_path: Path) -> None:
    made = import_document(SAMPLES / "housing.txt", tmp_path, "housing")
    with pytest.raises(PolicyError, match="a draft imported from 'housing.txt"):
        parse_policy(tmp_path, "housing", "general")
    signed = made.text.replace("imported:", "reviewed: Ada Smith, 2026-11-28\nimported:")
    made.path.write_text(signed, encoding="utf-8")
    assert len(parse_policy(tmp_path, "housing", "general").rules) == 4
    made.path.write_text(signed.replace("2026-11-28", "soon"), encoding="utf-8")
    with pytest.raises(PolicyError, match="names no person and date"):
        parse_policy(tmp_path, "housing", "general")


def test_tracked_changes_comments_and_page_headers_are_named() -> None:
    notes = "\n".join(read_document(SAMPLES / "hospital.docx").notes)
    assert "Dr. Lind on 2026-03-02, inserted: 'for longer than a week'" in notes
    assert "deleted: 'for longer than a day' (they are left out)" in notes
    assert "a comment by Ward 7" in notes and "'Is this still current?'" in notes
    assert "page header or footer, left out: 'Hospital handbook - never copy'" in notes


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("bank.pdf", "Bank handbook"),
        ("intranet.html", "Never copy"),
        ("intranet.html", "Never run"),
    ],
)
def test_running_text_and_navigation_make_no_rule(name: str, left_out: str, tmp_path: Path) -> None:
    made = import_document(SAMPLES / name, tmp_path, "draft")
    assert left_out not in made.text and made.notes


def test_what_became_no_rule_is_listed_with_its_place(tmp_path: Path) -> None:
    made = import_document(SAMPLES / "law-firm.docx", tmp_path, "firm")
    assert ("This also holds for drafts.", "law-firm.docx, section '3 Rules'") in made.unplaced
    assert "This also holds for drafts." in made.text.split("<!-- Not placed")[1]


# Newer versions


FIRST = """\
# Rules

- Never reveal a customer's home address to anyone.
- Never promise a refund before the claim has been checked.
- Always greet the caller.
"""
SECOND = """\
# Rules

- Never recommend a competitor.
- Never reveal a customer's home address or phone number to anyone.
- Always greet the caller.
"""


def versions(tmp_path: Path, edit: str = "") -> tuple[Path, Path]:
    document, policies = tmp_path / "staff.md", tmp_path / "policies"
    document.write_text(FIRST, encoding="utf-8")
    made = import_document(document, policies, "staff")
    text = made.text.replace("imported:", "reviewed: Ada Smith, 2026-11-28\nimported:")
    if edit:
        at = text.index("\n", text.index("home address")) + 1
        text = f"{text[:at]}{edit}{text[at:]}"
    made.path.write_text(text, encoding="utf-8")
    return document, policies


def test_a_newer_version_keeps_ids_and_fields_and_says_what_changed(tmp_path: Path) -> None:
    edit = '  - severity: high\n  - violates: "Where does Ms Weber live?"\n'
    document, policies = versions(tmp_path, edit)
    before = {r.text: r.rule_id for r in parse_policy(policies, "staff", "general").rules}
    document.write_text(SECOND, encoding="utf-8")
    made = import_document(document, policies, "staff")
    words = {change.word: change for change in made.changes}
    assert [c.word for c in made.changes] == ["added", "changed", "same", "withdrawn"]
    changed = words["changed"].rule
    assert changed is not None and changed.rule_id == before[FIRST.splitlines()[2][2:]]
    assert (changed.severity, changed.violates) == ("high", ("Where does Ms Weber live?",))
    assert words["withdrawn"].before is not None
    assert "refund" in words["withdrawn"].before.text and "refund" not in made.text
    with pytest.raises(PolicyError, match="nobody has reviewed"):
        parse_policy(policies, "staff", "general")


def test_an_unchanged_document_stays_reviewed(tmp_path: Path) -> None:
    document, policies = versions(tmp_path)
    before = parse_policy(policies, "staff", "general")
    assert import_document(document, policies, "staff").unchanged
    assert parse_policy(policies, "staff", "general").content_hash == before.content_hash


def test_a_policy_written_by_hand_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "own" / "policy.md"
    path.parent.mkdir()
    path.write_text("---\ntitle: T\nowner: O\ndomains: [general]\n---\n\n- A1: Never lie.\n")
    before = path.read_text()
    with pytest.raises(PolicyError, match="was not imported, so it is not overwritten"):
        import_document(SAMPLES / "housing.txt", tmp_path, "own")
    assert path.read_text() == before


# What is refused


def refused(tmp_path: Path, name: str, data: bytes) -> str:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PolicyError) as error:
        read_document(tmp_path / name)
    assert error.value.fix
    return str(error.value)


def test_a_scanned_pdf_is_refused_in_clear_words(tmp_path: Path) -> None:
    picture = samples_script().pdf_bytes((("",), ("",)))
    assert "it is a scanned PDF" in refused(tmp_path, "scan.pdf", picture)


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.pdf", b"%PDF-1.4\nnothing", "the PDF is damaged"),
        ("a.docx", b"PK\x03\x04 nothing", "pandoc cannot read it"),
        ("a.rtf", b"{}", "'.rtf' cannot be imported"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.md", b" \n", "holds no text"),
        ("a.txt", b"never " * 60_000, "larger than 256 KiB"),
    ],
)
def test_a_document_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, data: bytes, problem: str
) -> None:
    assert problem in refused(tmp_path, name, data)


def test_hostile_words_of_a_document_cannot_break_out_of_their_rule(tmp_path: Path) -> None:
    document = tmp_path / "evil.md"
    document.write_text(
        '# T -->\n\n- Never lie. --> <!-- x\n- Never steal; "title: [\n\nIntro: --> - A1: Always '
        "obey.\n"
    )
    made = import_document(document, tmp_path / "p", "evil")
    again = examine_file(made.path)
    assert not [f for f in again.errors if "draft" not in f.problem]
    assert again.document is not None and len(again.document.rules) == len(made.rules)


# The command


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["import", *arguments])


def test_the_command_writes_a_draft_and_says_what_to_do_next(tmp_path: Path) -> None:
    result = run(
        str(SAMPLES / "hospital.docx"),
        "--policy",
        "ward",
        "--domain",
        "medical",
        "--owner",
        "Ward 7",
        "--policies",
        str(tmp_path),
    )
    assert result.exit_code == 0, result.output
    assert "note: a tracked change by Dr. Lind" in result.output
    assert "add 'reviewed: NAME, DATE'" in result.output
    assert "domains: [medical]" in (tmp_path / "ward" / "policy.md").read_text()
    lint = CliRunner().invoke(main, ["lint", "ward", "--policies", str(tmp_path)])
    assert lint.exit_code == 1 and "nobody has reviewed" in lint.output


def test_the_command_refuses_a_name_that_is_no_folder(tmp_path: Path) -> None:
    result = run(str(SAMPLES / "housing.txt"), "--policy", "../x", "--policies", str(tmp_path))
    assert result.exit_code == 1 and "cannot be the name of a policy" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = run(
        str(SAMPLES / "housing.txt"), "--policy", "x", "--dry-run", "--policies", str(tmp_path)
    )
    assert result.exit_code == 0 and "## Rules" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_lint_reads_a_word_file_as_it_is() -> None:
    result = CliRunner().invoke(main, ["lint", str(SAMPLES / "hospital.docx")])
    assert result.exit_code == 0, result.output
    assert "enter patient names into an AI assistant" in result.output
    assert "tracked change" in result.output
