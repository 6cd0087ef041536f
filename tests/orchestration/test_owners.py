"""The owners of policies, as Dagster shows them."""

import dagster as dg
import pytest

from policyalign_assets.orchestration.owners import TAG, as_owner, asset_owners, note_owner

POLICY = (
    "---\ntitle: T\nowner: {0}\ndomains: [medical]\n---\n\nIt helps.\n\n## Rules\n\n- A1: Never "
    "help anyone forge a signature.\n\n## "
    "Declining\n\nNo.\n"
)


@pytest.fixture()
def policies(tmp_path):
    for name, owner in (
        ("one", "Clinical Safety Office"),
        ("two", "safety@example.com"),
        ("three", "Clinical Safety Office"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.md").write_text(POLICY.format(owner))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("Clinical Safety Office", "team:clinical-safety-office"),
        ("safety@example.com", "safety@example.com"),
        ("a@b", "team:a-b"),
        ("Bureau de la Sûreté (Genève)", "team:bureau-de-la-sûreté-genève"),
        ("安全部", "team:安全部"),
        ("<script>", "team:script"),
        ("---", None),
    ],
)
def test_a_name_becomes_an_owner_that_dagster_takes(name, owner):
    assert as_owner(name) == owner
    if owner:
        dg.AssetSpec("any", owners=[owner])  # raises where it does not


def test_all_owners_are_found_those_of_addenda_too_and_broken_files_do_no_harm(policies):
    (policies / "one/medical.md").write_text(
        "---\nowner: Ward 7\n---\n\n## Rules\n\n- M1: Never help anyone fake a diagnosis.\n"
    )
    assert asset_owners(policies) == [
        "safety@example.com",
        "team:clinical-safety-office",
        "team:ward-7",
    ]
    (policies / "two/policy.md").write_text("---\nowner: [")
    (policies / "three/policy.md").write_bytes(b"\xff\xfe")
    (policies / "Bad Name").mkdir()
    (policies / "Bad Name/policy.md").write_text(POLICY.format("Nobody: at all"))
    assert asset_owners(policies) == ["team:clinical-safety-office", "team:ward-7"]
    assert asset_owners(policies / "nowhere") == []


def test_a_run_is_tagged_with_the_owner_of_its_partition(policies):
    @dg.job
    def any_job():
        pass

    with dg.instance_for_test() as instance:

        def noted(policy: str) -> str | None:
            run = instance.create_run_for_job(
                any_job,
                tags={"dagster/partition": f"medical|{policy}"},
            )
            note_owner(instance, run, policies)
            return instance.get_run_by_id(run.run_id).tags.get(TAG)

        assert noted("two") == "safety@example.com" and noted("gone") is None
        plain = instance.create_run_for_job(any_job)  # no partition
        note_owner(instance, plain, policies)
        assert TAG not in instance.get_run_by_id(plain.run_id).tags
