"""The UI as a person uses it: the real webserver and daemon, a headless browser, fast fake stages.

    pip install -e '.[dev]' && python -m pytest tests/orchestration/test_browser.py

Skipped where there is no Chromium. $SCREENSHOTS names a folder for pictures.
"""

import socket
import subprocess
import sys
from contextlib import contextmanager

import dagster as dg
import pytest
from browser import open_browser, seen
from fake_definitions import REPORT
from test_daemon import World

from policyalign_assets.stages.registry import STAGES

pytestmark = pytest.mark.daemon

# the daemon starts what is clicked, and nothing else
BY_HAND = {"POLICYALIGN_AUTOMATION__ENABLED": "false"}
SLOW = 240  # seconds that a run may take where other tests use the same cores


@pytest.fixture(scope="module")
def page():
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(120_000)
        yield page


@contextmanager
def webserver(world: World):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster_webserver", *where],
        cwd=world.folder,
        env=world.environ(**BY_HAND),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        world.wait_for(lambda: _answers(port), SLOW)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory, page):
    made = World(tmp_path_factory.mktemp("browser"))
    (made.control / "plots").touch()
    made.start(**BY_HAND)
    with webserver(made) as made.url:
        yield made
    made.stop()
    made.instance.dispose()


@pytest.fixture(scope="module")
def aligned(world, page):
    """The catalog and one partition, materialized by clicking."""
    page.goto(f"{world.url}/assets/policy_catalog")
    page.get_by_role("button", name="Materialize").first.click()
    world.wait_for(lambda: succeeded(world) == 1, SLOW)
    page.goto(f"{world.url}/locations/policyalign_assets/jobs/alignment")
    page.get_by_role("button", name="Materialize all").click()
    for dimension in ("medical", "alpha"):
        page.get_by_text("Select a partition or create one").first.click()
        page.get_by_role("menuitem").filter(has_text=dimension).click()
        page.get_by_text("Launch runs to materialize").click()  # closes the list
        if page.get_by_text("Select a partition or create one").count() == 0:
            break  # one dimension alone
    seen(page, "choice")
    page.get_by_role("button", name="Launch 1 run").click()
    world.wait_for(lambda: succeeded(world) == 2, SLOW)
    return world


def succeeded(world: World) -> int:
    done = dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])
    return len(world.instance.get_runs(done))


def test_the_graph_shows_the_groups_and_the_owner(world, page):
    page.goto(f"{world.url}/asset-groups")
    for group in ("policy", "data", "model", "evidence"):
        page.get_by_text(group, exact=True).first.wait_for()
    seen(page, "graph")
    page.goto(f"{world.url}/assets/policy_document")
    page.get_by_text("The policy text as typed rules").first.wait_for()
    page.get_by_text("someone", exact=True).first.wait_for()  # from the front matter
    seen(page, "asset")


def test_a_partition_is_materialized_by_clicking(aligned, page):
    page.goto(f"{aligned.url}/runs/{aligned.runs()[-1].run_id}")
    page.get_by_text("RUN_SUCCESS").first.wait_for()
    page.get_by_text("Success", exact=True).first.wait_for()
    seen(page, "run")
    assert all(aligned.fingerprint("medical|alpha", stage) for stage in STAGES)
    assert not any(aligned.fingerprint("legal|alpha", stage) for stage in STAGES)


def test_the_report_is_a_link_beside_its_plot(aligned, page):
    page.goto(f"{aligned.url}/assets/benchmark_report?partition=medical%7Calpha&view=partitions")
    page.get_by_text("Materialized", exact=True).first.wait_for()
    link = page.locator(f'a[href="{REPORT}"]').first
    link.wait_for()
    page.get_by_text("Show Markdown").first.click()
    plot = page.get_by_role("img", name="the main plot")
    plot.wait_for()
    assert plot.evaluate("image => image.naturalWidth") > 100
    seen(page, "report")


def test_the_launchpad_refuses_a_wrong_setting_while_it_is_typed(aligned, page):
    typed = "resources:\n  pipeline:\n    config:\n      overrides:\n        distillation:\n"
    page.goto(f"{aligned.url}/locations/policyalign_assets/jobs/alignment/playground")
    editor = page.locator(".CodeMirror").first
    editor.wait_for()
    for setting, word in (("stepps: 60", "stepps"), ("steps: 60", None)):
        text = f"{typed}          {setting}\n"
        editor.evaluate("(box, text) => box.CodeMirror.setValue(text)", text)
        if word:
            page.get_by_text(f'unexpected config entry "{word}"').first.wait_for()
            seen(page, "refusal")
        else:
            page.get_by_text("No errors").first.wait_for()


def test_an_edited_rule_shows_as_out_of_date_with_the_reason(aligned, page):
    aligned.addendum("alpha", "medical", "prescription")
    seen_by_sensor = f"{aligned.url}/assets/policy_document?partition=medical%7Calpha"
    deadline = 12
    for _ in range(deadline):  # the sensor that only observes looks every second
        page.goto(f"{seen_by_sensor}&view=partitions")
        page.get_by_text("Materialized", exact=True).first.wait_for()
        badge = page.get_by_text("Unsynced").first
        if badge.count():
            break
        page.wait_for_timeout(5_000)
    badge.hover()
    page.get_by_text("policy_files").first.wait_for()
    seen(page, "stale")
    page.goto(f"{aligned.url}/assets/policy_files?view=events")
    page.get_by_text("medical|alpha").first.wait_for()
    seen(page, "reason")
    observations = dg.AssetRecordsFilter(
        dg.AssetKey("policy_files"), asset_partitions=["medical|alpha"]
    )
    (last,) = aligned.instance.fetch_observations(observations, limit=1).records
    assert last.asset_observation.metadata["what changed"].value == "rules edited: B1"
