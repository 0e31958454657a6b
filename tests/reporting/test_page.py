"""The page of a plan, opened in a real browser: whole and legible, with the plan's own figures."""

import io
import re

import matplotlib
import numpy as np
import pytest

from tests.reporting.support import FIGURES, HOSTILE, written

# In the browser


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("which", ["real", "hostile"])
def test_every_figure_is_there_and_nothing_is_cut_off(which, width, real, hostile, show, tmp_path):
    page = show(real[0] / "plan.html" if which == "real" else written(hostile[0], tmp_path), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in FIGURES:
        box = page.locator(f"#figure-{name}").bounding_box()
        drawn = page.locator(f"#figure-{name} svg").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert min(drawn["width"], drawn["height"]) > 150
        assert drawn["width"] <= box["width"] or name == "labels"  # that one scrolls within its figure
    for name in FIGURES:
        spilled, covered = page.evaluate(TEXTS, f"#figure-{name} svg")
        assert spilled == []
        assert covered == []


TEXTS = """selector => {
  const svg = document.querySelector(selector), frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  const spilled = texts.filter(([, b]) =>
    b.left < frame.left - 2 || b.right > frame.right + 2 || b.top < frame.top - 2 || b.bottom > frame.bottom + 2).map(t => t[0]);
  const covered = [];
  for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [texts[i][1], texts[j][1]];
    const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (width > 1 && height > 0.35 * Math.min(a.height, b.height)) covered.push([texts[i][0], texts[j][0]]);
  }
  return [spilled, covered];
}"""


def test_the_table_has_the_figures_of_the_plan(real, show):
    folder, plan = real
    page = show(folder / "plan.html")
    rows = page.evaluate(
        "[...document.querySelectorAll('#strategies tbody tr')].map(tr => ({title: tr.querySelector('th').textContent, "
        "cells: [...tr.querySelectorAll('td')].map(td => td.textContent.trim()), "
        "values: [...tr.querySelectorAll('data')].map(d => Number(d.value))}))"
    )
    assert len(rows) == len(plan["strategies"]) == 42
    for row, s in zip(rows, plan["strategies"], strict=True):
        assert row["title"] == s["name"] + ("+hubness" if s["hubness"] else "")
        names = ("recall", "gain", "recovered", "overlap", "candidate_recall", "mrr", "rows_changed", "encodes", "seconds", "cost")
        assert row["values"] == [s[name] for name in names]
        assert row["cells"][-2:] == ["yes" if s[n] else "no" for n in ("needs_old_encoder", "needs_texts")]
        assert f"{s['recall']:.3f}" in row["cells"][0]
        low, high = s["recall_ci"]
        assert f"[{low:.3f}, {high:.3f}]" in row["cells"][0]
        low, high = s["gain_ci"]
        verdict = "\u2013" if row["title"] == "keep-old" else "yes" if low > 0 else "worse" if high < 0 else "unclear"
        assert row["cells"][2] == verdict
    cards = page.locator(".cards article").all_inner_texts()
    assert len(cards) == 3
    for card, r in zip(cards, plan["recommendations"].values(), strict=True):
        assert r["strategy"] in card
        assert r["reason"] in card
    marked = page.locator("#strategies tr.recommended th").all_text_contents()
    assert set(marked) == {r["strategy"] for r in plan["recommendations"].values()}
    labels = page.evaluate(
        "[...document.querySelectorAll('#labels-table tbody tr')].map(tr => [...tr.children].map(c => c.textContent.trim()))"
    )
    assert [row[0] for row in labels] == [row["label"] for row in plan["labels"]][:40]
    assert labels[0][2] == f"{plan['labels'][0]['values']['keep-old']:.3f}"


def test_hostile_strings_are_shown_as_text(hostile, show, tmp_path):
    plan, labels = hostile
    page = show(written(plan, tmp_path))
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit") is None
    assert page.locator("script, img, iframe, object, embed, [onload], [onerror]").count() == 0
    assert page.locator("h1").inner_text() == f"{HOSTILE[0]} \u2192 {HOSTILE[1]}"
    shown = page.locator("#labels-table tbody th").all_text_contents()
    assert len(shown) == len(set(labels.values())) == len(HOSTILE)
    assert {HOSTILE[0], HOSTILE[2], HOSTILE[3], HOSTILE[5], HOSTILE[6], HOSTILE[7], HOSTILE[9], "42"} <= set(shown)
    drawn = " ".join(page.locator("#figure-labels text").all_text_contents())
    assert all(text in drawn for text in (r"$\frac{$", 'style="fill: #010101"', "&lt;b&gt;", HOSTILE[7], "{{ 7 * 7 }}", "a b c"))


def test_it_is_drawn_and_follows_dark(real, show):
    looks = []
    for scheme in ("light", "dark"):
        page = show(real[0] / "plan.html", color_scheme=scheme)
        for name in FIGURES if scheme == "light" else FIGURES[-1:]:
            image = matplotlib.image.imread(io.BytesIO(page.locator(f"#figure-{name} svg").screenshot()), format="png")
            assert len(np.unique((image[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 30
        color = "getComputedStyle(document.querySelector('#figure-curve text')).fill"
        looks.append((page.evaluate("getComputedStyle(document.body).backgroundColor"), page.evaluate(color), image.mean()))
    (light, ink, bright), (dark, pale, dim) = looks
    assert light != dark
    assert ink != pale
    assert bright > 0.7 > 0.4 > dim


def test_it_prints_on_a_few_pages(real, show):
    page = show(real[0] / "plan.html")
    printed = page.pdf(prefer_css_page_size=True)
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 8
