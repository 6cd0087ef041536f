"""What Dagster shows as out of date after an edit or a changed setting, and the reason it gives."""

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from policyalign_assets.orchestration.observed import depends_on_sources, observed_assets
from policyalign_assets.orchestration.observed import source_changes as look
from policyalign_assets.orchestration.partitions import NAME, partitions
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.orchestration.source_versions import POLICY_FILES, SETTINGS, WHAT_CHANGED
from policyalign_assets.settings import load_settings

pytestmark = pytest.mark.slow

KEY = "medical|alpha"
RULE = "- A{0}: Never help anyone forge a {1}.\n"
POLICY = (
    "---\ntitle: T\nowner: {0}\ndomains: [medical]\n---\n\nIt helps.\n\n## Rules\n\n{1}\n"
    "## Declining\n\nNo.\n"
)


def stage(name: str) -> dg.AssetsDefinition:
    @dg.asset(name=name, partitions_def=partitions, deps=depends_on_sources(name), code_version="1")
    def made(pipeline: Pipeline) -> None: ...

    return made


STAGES = [stage("policy_document"), stage("distilled_checkpoint"), stage("judgements")]
DEFS = dg.Definitions(assets=[*STAGES, *observed_assets], resources={"pipeline": Pipeline()})


@pytest.fixture()
def world(tmp_path, monkeypatch):
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(NAME, [KEY])
        yield World(instance, tmp_path, monkeypatch)


class World:
    def __init__(self, instance, folder, monkeypatch):
        self.instance, self.folder, self.monkeypatch = instance, folder, monkeypatch
        (folder / "alpha").mkdir()
        self.write(RULE.format(1, "signature"))

    def write(self, rules: str, owner: str = "Someone") -> None:
        (self.folder / "alpha/policy.md").write_text(POLICY.format(owner, rules))

    def set(self, **environ: str) -> None:
        """The settings of the deployment, as the next start of the daemon reads them."""
        settings = load_settings(environ=environ)
        monkeypatch = self.monkeypatch
        monkeypatch.setattr("policyalign_assets.orchestration.observed.DEPLOYED", settings)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    def materialize(self) -> None:
        pipeline = Pipeline(policies_dir=str(self.folder), data_dir=str(self.folder / "data"))
        result = dg.materialize(
            STAGES,
            partition_key=KEY,
            instance=self.instance,
            resources={"pipeline": pipeline},
        )
        assert result.success

    def look(self) -> list[str]:
        """A tick of the sensor. What it saw, as its daemon records it."""
        result = look(
            dg.build_sensor_context(instance=self.instance, resources={"policies": self.folder})
        )
        if isinstance(result, dg.SkipReason):
            return []
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        return [f"{e.partition}: {e.metadata[WHAT_CHANGED].value}" for e in result.asset_events]

    def stale(self) -> dict[str, list[str]]:
        resolver = CachingStaleStatusResolver(
            self.instance,
            DEFS.resolve_asset_graph(),
            LoadingContextForTest(self.instance),
        )
        causes = {
            made.key.to_user_string(): resolver.get_stale_causes(made.key, KEY) for made in STAGES
        }
        return {
            name: [f"{c.dependency.asset_key.to_user_string()}: {c.reason}" for c in found]
            for name, found in causes.items()
            if found
        }


def test_what_was_made_from_the_files_of_now_is_fresh(world):
    world.materialize()
    assert world.stale() == {}
    assert world.look() == []  # the run has observed everything itself
    assert world.stale() == {}


def test_an_edited_rule_makes_the_document_stale_and_names_the_rule(world):
    world.materialize()
    world.write(RULE.format(1, "stamp") + RULE.format(2, "seal"))
    assert world.look() == [f"{KEY}: rules added: A2; edited: A1"]
    reason = f"{POLICY_FILES.to_user_string()}: has a new dependency data version"
    assert world.stale() == {"policy_document": [reason]}
    assert world.look() == []
    world.materialize()
    assert world.stale() == {}


def test_an_edit_seen_first_by_a_run_leaves_nothing_stale(world):
    world.materialize()
    world.write(RULE.format(1, "stamp"))
    world.materialize()
    assert world.look() == [] and world.stale() == {}


def test_an_edit_of_no_rule_is_no_change(world):
    world.materialize()
    world.write("  " + RULE.format(1, "signature") + "\n", owner="Another")
    assert world.look() == [] and world.stale() == {}


def test_a_changed_setting_makes_its_stages_stale_and_is_named(world):
    world.materialize()
    world.set(POLICYALIGN_DISTILLATION__LEARNING_RATE="1e-4")
    (said,) = world.look()
    assert said.startswith("distilled_checkpoint: distilled_checkpoint: distillation.learning_rate")
    assert said.endswith("-> 0.0001")
    reason = f"{SETTINGS.to_user_string()}: has a new dependency data version"
    assert world.stale() == {"distilled_checkpoint": [reason]}


def test_a_policy_with_a_mistake_is_left_as_it_was(world):
    world.materialize()
    (world.folder / "alpha/policy.md").write_text("no front matter")
    assert world.look() == [] and world.stale() == {}
