"""The report page of a small real job, read in a browser and compared with what the stages wrote."""

import base64
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import certdef
import certify
from certdef import stages
from certdef.attacks.evaluation import AttackEvaluation
from certdef.config.job import SigmaLaw, without_password
from certdef.data.sets import load_data
from certdef.report import certified
from certdef.report import images as pictures
from certdef.report import page as report
from certdef.report.formats import radius_down
from certdef.report.template import TEMPLATES
from certdef.report.words import law_in_words
from certdef.stages.ladder import Evaluation, Headline
from certdef.tracking.results import Share

pytestmark = pytest.mark.filterwarnings("error:::certdef.report.page", "error:::certdef.report.figures")


@pytest.fixture(scope="module")
def config(tiny_job):
    return tiny_job[0]


@pytest.fixture(scope="module")
def job(tiny_job):
    """A finished tiny job."""
    return tiny_job[1]


@pytest.fixture(scope="module")
def done(job):
    """The stages of the finished job, as the pipeline hands them to the page."""
    return list(job.stages.values())


@pytest.fixture(scope="module")
def page(browser, job):
    browser.get(job.report.resolve().as_uri())
    return browser


def rows(page, table):
    """The cells of a table's body and foot, as text, row by row."""
    script = """return [...document.querySelector(arguments[0]).querySelectorAll('tbody tr, tfoot tr')]
        .map(row => [...row.cells].map(cell => cell.innerText.replace(/\\s+/g, ' ').trim()))"""
    return page.execute_script(script, table)


def printed(share):
    """A share and its interval, as a table cell has them."""
    return f"{100 * share.value:.1f}% {100 * share.lower:.1f}–{100 * share.upper:.1f}"


def number(text):
    return int(re.sub(r"\D", "", text))


# --- in the browser -----------------------------------------------------------------------------------------


@pytest.mark.browser
def test_page_loads_nothing_but_itself(page, job):
    address = job.report.resolve().as_uri()
    requests = [
        message["params"]["request"]["url"]
        for entry in page.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"] == address  # not the browser's own start page
    ]
    assert address in requests  # the log works
    assert {url for url in requests if not url.startswith("data:")} == {address}
    assert page.get_log("browser") == []  # no errors, no warnings
    loaded = page.execute_script(
        "return [...document.querySelectorAll('[src], link[href]')].map(each => each.src || each.href)"
    )
    assert loaded
    assert all(source.startswith("data:") for source in loaded)
    assert page.execute_script("return document.scripts.length") == 0


@pytest.mark.browser
def test_every_picture_is_decoded_and_described(page):
    pictures_found = page.execute_script(
        "return [...document.images].map(each => [each.complete, each.naturalWidth, each.alt])"
    )
    assert len(pictures_found) == 3 * certified.STRIP + 4
    assert all(complete and width > 0 and len(alt) > 10 for complete, width, alt in pictures_found)


@pytest.mark.browser
def test_headings_and_contents_belong_together(page):
    headings = page.execute_script(
        "return [...document.querySelectorAll('h1, h2')].map(each => each.innerText)"
    )
    assert len(headings) == 8
    assert headings[1:3] == ["What this means", "What this does not prove"]
    missing = page.execute_script(
        "return [...document.querySelectorAll('a')].map(a => a.hash)"
        ".filter(hash => hash && !document.querySelector(hash))"
    )
    assert missing == []
    unscoped = page.execute_script("return document.querySelectorAll('th:not([scope])').length")
    assert unscoped == 0


@pytest.mark.browser
@pytest.mark.parametrize("subject", ["target", "surrogate"])
def test_certificate_table_equals_the_result(page, config, job, subject):
    found = rows(page, f"#certificates-{subject}")
    expected = [condition for condition in stages.conditions(config) if condition.subject == subject]
    assert len(found) == len(expected) == 5
    for cells, condition in zip(found, expected, strict=True):
        curve = job.stages["certify"].result.curves[condition.key]
        assert cells[0].startswith(condition.law)
        assert cells[1:3] == ["De³" if condition.denoised else "none", "sound"]
        ceiling = condition.noise.radius(0.001 ** (1 / curve.n))  # n of n, Cohen et al. 2019
        assert math.isclose(float(cells[-1]), ceiling, abs_tol=1.01e-3)
        assert float(cells[-1]) <= ceiling
        assert cells[-2] == f"{100 * curve.abstained:.1f}%"
        figures = zip([0, *config.certify.radii], curve.shares, strict=True)
        for cell, (radius, figure) in zip(cells[3:-2], figures, strict=True):
            assert cell == (printed(figure) if radius <= ceiling else "– n too small")
    caption = page.execute_script(
        f"return document.querySelector('#certificates-{subject} caption').innerText"
    )
    first = job.stages["certify"].result.curves[expected[0].key]
    n = re.search(r"n = ([\d\s]+) further", caption)[1]
    assert number(n) == first.n
    for words in (subject, "L2", "[0, 1]", "α = 0.001", f"{first.images} held-out images", "n0 = 100"):
        assert words.lower() in caption.lower()


@pytest.mark.browser
def test_headline_equals_the_first_condition_of_each_subject(page, config, job):
    curves = job.stages["certify"].result.curves
    for cells, subject in zip(rows(page, "#headline"), ("target", "surrogate"), strict=True):
        curve = curves[f"{subject}-nim-de3"]
        assert cells[0].lower() == subject
        assert [number(cell) for cell in cells[1:3]] == [curve.images, curve.n]
        assert cells[3] == printed(curve.accuracy_at_0)
        assert curve.accuracy_at_0.value > 0  # else the figures above say little
    title = page.execute_script("return document.querySelector('h1').innerText")
    proven = curves["target-nim-de3"].accuracy[0].value
    assert title.startswith(f"{100 * proven:.1f}% of held-out images")
    assert f"L2 distance of {config.certify.radii[0]}" in title


@pytest.mark.browser
def test_attack_table_equals_the_result(page, job):
    result = job.stages["attack"].result.rows
    found = rows(page, "#attack-table")
    assert len(found) == len(result) == 4
    for cells, row in zip(found, result, strict=True):
        assert float(cells[0].split()[0]) == row.eps
        assert cells[2:] == [
            printed(getattr(row, key))
            for key in ("target", "target_purified", "surrogate", "surrogate_purified")
        ]


@pytest.mark.browser
def test_bill_table_equals_the_ledger(page, job):
    found = {cells[0].split()[0].lower(): cells[1:7] for cells in rows(page, "#bill")}
    charges = {name: charge for name, charge in job.bill.charges.items() if charge.budget} | {
        "total": job.bill.total
    }
    assert found.keys() == charges.keys()
    for name, charge in charges.items():
        expected = [
            charge.budget,
            charge.answered,
            charge.unknown,
            charge.smallest,
            charge.largest,
            charge.recalled,
        ]
        assert [number(cell) for cell in found[name]] == expected


@pytest.mark.browser
def test_verdicts_equal_the_records(page, config, done, job):
    folder = next(stage.path for stage in done if stage.name == "certify")
    *_, target, surrogate = rows(page, "#strip")
    for cells, subject in ((target, "target"), (surrogate, "surrogate")):
        records = certify.read_records(folder / "records" / f"{subject}-nim-de3.jsonl")
        certified = dict(zip(records.idx.tolist(), range(len(records)), strict=True))
        for index, cell in enumerate(cells[1:]):
            if index not in certified:
                assert cell == "not certified"
                continue
            row = certified[index]
            if records.predict[row] == certify.ABSTAIN:
                assert cell == "abstains"
            elif records.correct[row]:
                label, radius = re.fullmatch(r"(\d) ✓ r ≥ (\d\.\d{3})", cell).groups()
                assert int(label) == records.predict[row]
                assert 0 <= records.radius[row] - float(radius) < 1e-3  # rounded down
            else:
                assert cell == f"{records.predict[row]} ✗ wrong class"


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
def test_body_never_scrolls_sideways(page, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.execute_script("return innerWidth") == width
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        # and no paragraph or caption is cut off by the box that scrolls
        cut = page.execute_script(
            "return [...document.querySelectorAll('p, dd, li, figcaption, h1, h2, caption, figure, .card')]"
            ".filter(each => each.getBoundingClientRect().right > innerWidth + 1).map(each => each.innerText)"
        )
        assert cut == []
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# --- without one --------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_summary_is_one_sheet_of_paper_and_is_not_on_the_screen(page, job):
    """A4 within margins of a centimeter, at 96 pixels an inch, has 718 x 1046."""
    summary = page.find_element("css selector", ".summary")
    assert not summary.is_displayed()
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 718, "height": 1046, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        box = page.execute_script(
            "const e = arguments[0], b = e.getBoundingClientRect(); return [b.top + scrollY, b.height, e.scrollWidth];",
            summary,
        )
        assert box[0] < 20, "the first thing on paper"
        assert 200 < box[1] < 1046
        assert box[2] <= 718
        assert page.execute_script("return getComputedStyle(arguments[0]).breakAfter", summary) == "page"
        shown = summary.text
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert all(words in shown for words in ("What is proven", "Against what", "For how many queries"))
    cells = page.execute_script(
        "return [...document.querySelectorAll('.summary tfoot td')].map(each => each.textContent)"
    )
    total = job.bill.total
    assert [number(cell) for cell in cells] == [total.smallest, total.largest, total.budget]


def test_rendering_again_gives_the_same_page(config, job, done):
    data = load_data(config.data, config.seed)
    again = report.render(config, data, done, job.bill)
    assert again == report.render(config, data, list(reversed(done)), job.bill)
    assert "run <code>abc123</code>" in report.render(
        config, data, done, job.bill, run_id="abc123", device="cuda"
    )


def test_names_of_others_are_text_not_markup(config, job, done):
    data = load_data(config.data, config.seed)
    hostile = replace(data, name="<script>alert(1)</script>", classes=("<b>0</b>", *data.classes[1:]))
    page = report.render(config, hostile, done, job.bill)
    assert "<script" not in page
    assert "<b>0</b>" not in page
    assert "&lt;script&gt;" in page


def test_configuration_on_the_page_repeats_the_job(config, job, done, tmp_path):
    from html import unescape

    page = report.render(config, load_data(config.data, config.seed), done, job.bill)
    file = tmp_path / "job.yaml"
    file.write_text(unescape(re.search(r"<pre[^>]*><code>(.*?)</code>", page, re.S)[1]))
    assert certdef.load_config("digits", file) == config


def test_attacks_are_listed_by_threat_model_and_the_worst_case_is_marked():
    def evaluation(*names, worst):
        attacks = [AttackEvaluation(name, "", 0.1, [0.5, 0.4, 0.6]) for name in names]
        return Evaluation(tuple(attacks), Headline(worst, "", Share(0.5, 0.4, 0.6)), (), 10, 20)

    bare = evaluation("clean", "blind", "square", "worst_case", worst="worst_case")
    purified = evaluation("clean", "blind", "bpda_eot", "full_eot", worst="full_eot")  # of version 0.1
    table = report.ladder_table({"none": bare, "de3": purified})
    names = [row["name"] for row in table["rows"]]
    assert names == ["clean", "blind", "square", "bpda eot", "full eot", "worst case"]
    assert names == [row["name"] for row in report.ladder_table({"de3": purified, "none": bare})["rows"]]
    marked = {row["name"]: [worst for _, worst in row["cells"]] for row in table["rows"]}
    assert {name: worst for name, worst in marked.items() if any(worst)} == {
        "worst case": [True, False],
        "full eot": [False, True],
    }
    assert table["rows"][-1]["cells"][1][0] is None


def test_radii_are_rounded_down_and_never_up():
    expected = {0.25: "0.250", 0.2999999: "0.299", 1 / 3: "0.333", 0.0: "0.000", math.inf: "∞"}
    assert {value: radius_down(value) for value in expected} == expected


def test_passwords_stay_off_the_page():
    text = '{"uri": "https://me:secret@host:5000/x", "mail": "a@b"}'
    assert without_password(text) == '{"uri": "https://…@host:5000/x", "mail": "a@b"}'


def test_law_is_named_as_in_the_literature():
    assert law_in_words(SigmaLaw()) == "gamma(25, scale 3)/255"
    uniform = SigmaLaw(family="uniform", shape=(), scale_255=150)
    assert law_in_words(uniform) == "uniform(scale 150)/255"


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_png_keeps_every_pixel(channels):
    from PIL import Image

    image = np.random.default_rng(0).uniform(-0.2, 1.2, (channels, 5, 7)).astype(np.float32)
    content = pictures.png(image)
    read = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=float) / 255
    cut = image.clip(0, 1)
    expected = cut if channels == 3 else np.repeat(cut.mean(axis=0, keepdims=True), 3, axis=0)
    assert read.shape == (5, 7, 3)
    assert np.abs(read.transpose(2, 0, 1) - expected).max() <= 0.51 / 255
    assert base64.b64decode(pictures.data_uri(content).split(",")[1]) == content


def test_picture_strip_uses_one_draw_of_the_law_and_no_global_state():
    images = np.full((4, 1, 8, 8), 0.5, np.float32)

    def steps(seed):
        return pictures.denoising_steps(torch.nn.Flatten(), certify.nim_noise(), images, seed)

    state = torch.get_rng_state()
    noisy, denoised = steps(3)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(denoised, noisy.flatten(1))  # the denoiser saw the noisy images and nothing else
    assert torch.equal(noisy, steps(3)[0])
    assert not torch.equal(noisy, steps(4)[0])
    sigma = (noisy - 0.5).flatten(1).std(dim=1)
    assert 0.1 < sigma.min() < sigma.max() < 0.6


def test_the_readme_takes_its_numbers_from_the_same_results(config, job):
    import runpy

    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "readme.py"))
    lines = benchmark["numbers"](config, job).splitlines()
    tables = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")
    ]
    curve = job.stages["certify"].result.curves["target-nim-de3"]
    first = next(cells for cells in tables if cells[0].startswith("NIM"))
    assert first[1:3] == ["De^3", benchmark["percent"](curve.accuracy_at_0)]
    attacked = {cells[0]: cells[1:] for cells in tables}["0.1"]
    row = next(row for row in job.stages["attack"].result.rows if row.eps == 0.1)
    assert attacked[:2] == [benchmark["percent"](row.target), benchmark["percent"](row.target_purified)]
    assert f"| total | {job.bill.total.budget:,} | {job.bill.total.answered:,} | 0 |" in lines
    share = job.stages["target"].result.accuracy
    assert any(line.startswith(f"target      {100 * share.value:.1f}% [") for line in lines)  # the terminal's


def test_templates_are_shipped_beside_the_module():
    assert {path.name for path in Path(TEMPLATES).iterdir()} >= {"report.html", "report.css"}


@pytest.mark.browser
def test_in_the_dark_plots_are_dark_and_photographs_as_they_are(page):
    """On paper, too, plots are as they were drawn."""
    script = "return [...document.querySelectorAll(arguments[0])].map(each => getComputedStyle(each).filter)"
    scheme = "prefers-color-scheme"

    def filters(pictures, color, media=""):
        features = [{"name": scheme, "value": color}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        return set(page.execute_script(script, pictures))

    try:
        assert filters(".plot img", "dark") == {"invert(1) hue-rotate(180deg)"}
        assert filters(".plot img", "light") == filters(".plot img", "dark", "print") == {"none"}
        assert filters("#strip img", "dark") == {"none"}
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
