"""The UI as a person uses it: the real webserver and daemon, a headless browser, the fast fake
stages.

    pip install -e '.[dev,browser]' && python -m pytest tests/test_browser.py

Skipped where playwright or a Chromium is missing. $SCREENSHOTS names a folder to look at
afterwards.
"""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from test_daemon import World

from policyalign_assets.stages.registry import STAGES

pytestmark = pytest.mark.daemon

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
BY_HAND = {
    "POLICYALIGN_AUTOMATION__ENABLED": "false"
}  # the daemon starts what is clicked, and nothing else


@pytest.fixture(scope="module")
def page():
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with playwright.sync_playwright() as started:
        try:  # without an installed one, playwright's own
            browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@contextmanager
def webserver(world: World):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dagster_webserver",
            "-w",
            "workspace.yaml",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ],
        cwd=world.folder,
        env=world.environ(**BY_HAND),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        world.wait_for(lambda: _answers(port))
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
    made.start(**BY_HAND)
    yield made
    made.stop()
    made.instance.dispose()


def test_the_graph_is_shown_and_a_partition_is_materialized_by_clicking(world, page):
    def seen(name: str) -> None:
        if "SCREENSHOTS" in os.environ:
            page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png")

    with webserver(world) as url:
        page.goto(f"{url}/asset-groups")
        for group in ("policy", "data", "model", "evidence"):
            page.get_by_text(group, exact=True).first.wait_for()
        seen("graph")

        page.goto(f"{url}/assets/policy_catalog")
        page.get_by_role("button", name="Materialize").first.click()
        world.wait_for(lambda: _succeeded(world) == 1)
        page.goto(f"{url}/assets/policy_document")
        page.get_by_text("The policy text as typed rules").first.wait_for()
        page.get_by_text("someone", exact=True).first.wait_for()  # the owner, from the front matter
        seen("asset")

        page.goto(f"{url}/locations/policyalign_assets/jobs/alignment")
        page.get_by_role("button", name="Materialize all").click()
        for dimension in ("medical", "alpha"):
            page.get_by_text("Select a partition or create one").first.click()
            page.get_by_role("menuitem").filter(has_text=dimension).click()
            page.get_by_text("Launch runs to materialize").click()  # closes the list
        seen("choice")
        page.get_by_role("button", name="Launch 1 run").click()
        world.wait_for(lambda: len(world.runs()) == 2)
        page.goto(f"{url}/runs/{world.runs()[-1].run_id}")
        page.get_by_text("RUN_SUCCESS").first.wait_for()
        page.get_by_text("Success", exact=True).first.wait_for()
        seen("run")

        page.goto(f"{url}/assets/benchmark_report?partition=medical%7Calpha&view=partitions")
        page.get_by_text("Materialized", exact=True).first.wait_for()
        page.get_by_text("Show Markdown").first.click()
        plot = page.get_by_role("img", name="the main plot")
        plot.wait_for()
        assert plot.evaluate("image => image.naturalWidth") > 100
        seen("report")
    assert _succeeded(world) == 2
    assert all(world.fingerprint("medical|alpha", stage) for stage in STAGES)
    assert not any(world.fingerprint("legal|alpha", stage) for stage in STAGES)


def _succeeded(world: World) -> int:
    return sum(run.status == dg.DagsterRunStatus.SUCCESS for run in world.runs())
