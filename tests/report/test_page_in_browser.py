"""The report page as people see it: on a screen, on a phone and on paper."""

import re

import pytest
from browser import open_browser, seen
from test_report import ARMS, CONTEXT, case, sample_report, table

from policyalign_assets.report.case_pages import case_pages
from policyalign_assets.report.render import to_html

pytestmark = pytest.mark.daemon  # starts a program beside the tests

CUT = """() => [...document.querySelectorAll('main *')]
  .filter(e => !e.closest('thead') && e.getBoundingClientRect().width)
  .filter(e => { const box = e.getBoundingClientRect();
    return box.right > innerWidth + 1 || box.left < -1 || e.scrollWidth > e.clientWidth + 1
      && ['auto', 'hidden', 'scroll'].includes(getComputedStyle(e).overflowX); })
  .map(e => `${e.tagName}: ${e.textContent.slice(0, 60)}`)"""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(to_html(sample_report()), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_and_the_verdict_comes_first(browser, page_file, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT) == []
    assert failed == []
    verdict = page.get_by_label("Verdict").bounding_box()
    assert verdict and verdict["y"] < 60
    for picture in page.locator("img").all():
        assert picture.evaluate("image => image.naturalWidth") > 100
    seen(page, f"report-{width}")
    page.close()


def test_the_annex_and_closed_parts_are_printed_with_page_numbers_and_identity(
    browser, page_file, tmp_path
):
    pypdf = pytest.importorskip("pypdf", reason="pypdf is missing: pip install -e '.[import]'")
    page = browser.new_page()
    page.goto(page_file.as_uri())
    closed = page.locator("details:not([open])")
    inside = [text.strip() for text in closed.locator("pre").all_text_contents() if text.strip()]
    assert inside  # transcripts and the policy: closed on the screen
    file = tmp_path / "report.pdf"
    page.pdf(path=file, prefer_css_page_size=True)
    pages = [" ".join(p.extract_text().split()) for p in pypdf.PdfReader(file).pages]
    printed = " ".join(pages)
    for text in inside:
        (first, *_) = text.splitlines()
        assert " ".join(first.split())[:30] in printed
    for number, text in enumerate(pages, start=1):
        assert f"Page {number} of {len(pages)}" in text
        assert re.search(r"checkpoint \w+", text)
    page.close()


def test_cases_are_searched_in_the_page_itself(browser, tmp_path):
    rows = [case(arm, "twins", f"c{i}", i != 2) for arm in ARMS for i in range(4)]
    (made,) = case_pages(table(rows), CONTEXT, False)
    (tmp_path / made.file).write_text(made.html, encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / made.file).as_uri())
    total = page.locator("article").count()
    assert total == 4
    page.locator("#search").fill("no such words anywhere")
    assert page.locator("#shown").text_content() == "0"
    page.locator("#search").fill("C1")
    assert page.locator("#shown").text_content() == "1"  # whatever its case
    page.locator("#search").fill("")
    assert page.locator("#shown").text_content() == "4"
    page.locator("#state").select_option("bad")
    assert page.locator("article:visible").count() == 1
    page.close()
