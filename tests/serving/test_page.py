"""The page at ``/``, in a real browser, of a real service: what it shows, and that anyone can use it."""

import itertools
import re
import shutil

import httpx
import numpy as np
import pytest

from tests.serving.page_world import BIG, HOSTILE, QUERY, Encoder, PageWorld
from tests.serving.support import running_upstream, serving

pytestmark = pytest.mark.serve
KEY = "a key & more"
ORDER = ["old", "translated", "blended", "fused", "native", "projected"]


@pytest.fixture(scope="module")
def page_world(browser, tmp_path_factory):
    return PageWorld(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def service(page_world):
    """A client of a service with both encoders."""
    with running_upstream(Encoder, page_world.known["old"]) as old, running_upstream(Encoder, page_world.known["new"]) as new:
        upstreams = ["--upstream", f"minilm={old.url}#m", "--upstream", f"mpnet={new.url}#m"]
        with serving(*page_world.arguments(), *upstreams) as (_, client):
            yield client


@pytest.fixture(scope="module")
def plain(page_world):
    """A client of a service with a key, without encoders and without a catalog."""
    rollout = shutil.copytree(page_world.path("rollout"), page_world.path("rollout-of-its-own"))
    arguments = [page_world.path("documents.safetensors"), "--index", rollout, "--catalog", page_world.path("none.duckdb")]
    with serving(*arguments, environment={"EMBRIDGE_SERVE_API_KEY": KEY}) as (_, client):
        yield client


@pytest.fixture
def show(browser):
    """``show(client, width=..., faults=False, **context)``: the page; at the end no complaint, and no other origin."""
    opened, said, elsewhere = [], [], []

    def make(client, width=1280, faults=False, **options):
        url = str(client.base_url)
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        page = context.new_page()
        if not faults:
            page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((url, "data:")) else elsewhere.append(request.url))
        page.goto(url)
        opened.append(context)
        return page

    yield make
    for context in opened:
        context.close()
    assert said == []
    assert elsewhere == []


def searched(page, query=QUERY):
    page.get_by_label("Query text").fill(query)
    page.get_by_role("button", name="Search").click()
    page.locator(".list").first.wait_for()
    return page


def lists_of(page):
    """Rows of each list, by its heading: rank, id, score, mark."""
    return dict(page.evaluate(
        "[...document.querySelectorAll('.list')].map(one => [one.querySelector('h3').textContent, "
        "[...one.querySelectorAll('tbody tr')].map(tr => [...tr.children].map(c => (c.querySelector('.hush') || c).textContent))])"
    ))  # fmt: skip


def expected(columns, base):
    """The same from the answer of ``/v1/compare``."""
    ids = {c["title"]: [hit["id"] for hit in c["hits"]] for c in columns}
    found = {}
    for column in columns:
        title, rows = column["title"], []
        for rank, hit in enumerate(column["hits"], start=1):
            others = sum(hit["id"] in known for name, known in ids.items() if name != title)
            place = ids[base].index(hit["id"]) + 1 if hit["id"] in ids[base] else None
            if not others:
                mark = "only in this list"
            elif title == base:
                mark = f"also in {others} of {len(ids) - 1}"
            elif place is None:
                mark = f"not in {base}"
            else:
                mark = "same rank" if place == rank else f"{abs(place - rank)} {'higher' if place > rank else 'lower'}"
            rows.append([str(rank), str(hit["id"]), f"{hit['score']:.3f}", mark])
        found[title] = rows
    return found


def test_a_query_is_answered_by_every_strategy_side_by_side(service, show):
    page = searched(show(service))
    answer = service.post("/v1/compare", json={"texts": [QUERY], "k": 10}).json()["columns"]
    live = [column for column in answer if column["index"] == "live"]
    assert list(lists_of(page)) == ORDER
    assert lists_of(page) == expected(live, "old")
    boxes = [page.locator(".list").nth(i).bounding_box() for i in range(5)]
    assert len({box["y"] for box in boxes}) == 1
    assert len({box["x"] for box in boxes}) == 5
    marks = {row[3] for rows in lists_of(page).values() for row in rows}
    assert {"same rank", "not in old", "only in this list"} <= marks
    said = page.get_by_role("status").inner_text()
    shared = len({row[1] for row in lists_of(page)["fused"]} & {row[1] for row in lists_of(page)["old"]})
    assert f"6 lists for “{QUERY}” over live" in said
    assert f"fused has {shared} of 10" in said
    page.get_by_label("Compare with").select_option("native")
    assert lists_of(page) == expected(live, "native")
    page.get_by_label("Index").select_option("fused")
    assert list(lists_of(page)) == [name for name in ORDER if name != "native"]
    page.get_by_label("Hits").select_option("50")
    page.get_by_role("button", name="Search").click()
    page.locator("#lists tr:nth-child(50)").first.wait_for()


def test_differences_are_marked_by_symbols_too(service, show):
    page = searched(show(service))
    cells = page.locator(".mark [aria-hidden]").all_text_contents()
    assert all(re.fullmatch(r"=|\+|only|[▲▼] \d+|\d/5", cell) for cell in cells)
    key = page.locator(".key").inner_text()
    assert all(symbol in key for symbol in ("=", "▲ ▼", "+", "only"))


def test_a_logged_query_and_pasted_vectors_stand_in_for_text(page_world, plain, show):
    page = show(plain, faults=True)
    with_key(page)
    assert page.get_by_label("Query text").is_hidden()
    query = page.get_by_role("combobox", name="Logged query")
    query.select_option(index=3)
    given = page_world.logged(query.evaluate("node => node.value"))
    page.get_by_role("button", name="Search").click()
    page.locator(".list").first.wait_for()
    logged = lists_of(page)
    assert list(logged) == ORDER
    page.get_by_label("Vectors").check()
    page.get_by_role("button", name="Search").click()
    assert "Paste a vector first" in page.get_by_role("alert").inner_text()
    page.get_by_label("Vector by the new model: mpnet, 32 numbers").fill("0.1, x")
    page.get_by_role("button", name="Search").click()
    assert "not a number: “x”" in page.get_by_role("alert").inner_text()
    page.get_by_label("Vector by the new model").fill(" ".join(map(repr, given["new"])))
    page.get_by_role("button", name="Search").click()
    page.get_by_text("Without old").wait_for()
    assert lists_of(page).keys() == {"translated", "native", "fused", "projected"}
    page.get_by_label("Vector by the old model").fill(str(given["old"]))
    page.get_by_role("button", name="Search").click()
    page.locator("#lists h3", has_text="old").wait_for()
    assert lists_of(page) == logged


def with_key(page, key=KEY):
    page.get_by_role("textbox", name="API key").fill(key)
    page.get_by_role("button", name="Use this key").click()
    page.locator("#open").wait_for()


def test_a_key_is_typed_and_kept_in_memory_only(plain, show):
    page = show(plain, faults=True)
    page.get_by_role("textbox", name="API key").wait_for()
    assert page.get_by_role("heading", name="Compare searches").is_hidden()
    assert page.evaluate("document.activeElement.id") == "key"
    page.get_by_role("textbox", name="API key").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("The API key was not accepted.").wait_for()
    with_key(page)
    assert "has no plan" in page.locator("#plan").inner_text()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.href.includes('key')]") == [
        0, 0, "", False,
    ]  # fmt: skip
    page.reload()
    page.get_by_role("textbox", name="API key").wait_for()


def test_errors_of_the_service_are_sentences(page_world, plain, show):
    page = show(plain, faults=True)
    with_key(page)
    rollout = page_world.folder / "rollout-of-its-own"
    rollout.rename(page_world.folder / "away")
    page.get_by_role("button", name="Search").click()
    page.get_by_text("Try again in 5 seconds.").wait_for()
    assert page.locator(".list").count() == 0
    (page_world.folder / "away").rename(rollout)
    page.get_by_role("button", name="Search").click()
    page.locator(".list").first.wait_for()
    assert page.locator("#query-fault").is_hidden()
    page.context.set_offline(True)
    page.get_by_role("button", name="Search").click()
    page.get_by_text("The service does not answer.").wait_for()


def test_maps_plan_and_rollout_are_those_of_the_service(service, show):
    page = show(service)
    page.locator("#rollout svg").wait_for()
    facts, plan, rollout = (service.get(f"/v1/{name}").json() for name in ("maps", "plan", "rollout"))
    [served] = facts["maps"]
    text = page.locator("#maps").inner_text()
    assert served["fingerprint"] in text
    for row in served["quality"]:
        assert f"{row['recall']:.3f} [{row['recall_low']:.3f}, {row['recall_high']:.3f}]" in text
    text = page.locator("#plan").inner_text()
    for one in plan["recommendations"]:
        assert one["strategy"] in text
        assert one["reason"] in text
    page.get_by_role("button", name="Show all").click()
    names = page.locator("#plan .sheet:has(caption:has-text('best first')) tbody th").all_inner_texts()
    assert [name.split()[0] for name in names] == [row["strategy"] for row in plan["strategies"]]
    status = rollout["status"]
    text = page.locator("#rollout").inner_text()
    assert f"{status['native']} of {status['rows']}" in text
    assert page.locator("#rollout circle").count() == len(status["history"])
    assert page.locator("#rollout rect").count() == len(status["forecast"])
    for one in status["history"]:
        assert f"{one['recall']:.3f}" in page.get_by_role("row", name=f"stage {one['stage']}").inner_text()
    assert page.get_by_role("img", name="recall@10 by share of native rows").count() == 1


def test_ids_are_text_whatever_is_in_them_and_large_numbers_keep_their_digits(service, show):
    page = searched(show(service))
    page.get_by_label("Index").select_option("<i>")
    assert {row[1] for row in lists_of(page)["old"]} == set(HOSTILE)
    page.get_by_label("Index").select_option("numbers")
    assert {int(row[1]) for row in lists_of(page)["old"]} == set((BIG + np.arange(len(HOSTILE))).tolist())
    assert page.evaluate("window.hit") is None
    assert page.locator("#lists img, #lists script, #open i, #open b b").count() == 0


def test_only_the_page_itself_may_run(service, show):
    headers = service.get("/").headers
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    assert re.search(r"script-src 'sha256-[^']+';", policy)
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert len(service.get("/").content) < 40_000
    page = show(service, faults=True)
    tried = """() => {
      for (const put of [s => { const e = document.createElement("script"); e.textContent = s; document.body.append(e); },
                         s => { document.body.innerHTML = `<img src=x onerror="${s}">`; }])
        try { put("window.hit = 1"); } catch (e) { window.refused = (window.refused || 0) + 1; }
      return [window.hit, window.refused];
    }"""
    assert page.evaluate(tried) == [None, 2]
    assert httpx.get(f"{service.base_url}/nothing").status_code == 404


# For everyone


def open_all(page):
    """The page with results, all strategies and the form for vectors."""
    searched(page)
    page.locator("#rollout svg").wait_for()
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Vectors").check()
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_borders_have_contrast(scheme, service, show):
    page = open_all(show(service, color_scheme=scheme))
    low, count, background = page.evaluate(CONTRAST)
    assert count > 500
    assert low == []
    assert (sum(background) > 600) == (scheme == "light")


CONTRAST = """() => {
  const rgb = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const behind = node => { for (; node; node = node.parentElement) {
    const c = rgb(getComputedStyle(node).backgroundColor); if (c[3] === 1) return c; if (c[3] > 0) throw new Error("mixed"); }
    throw new Error("no background"); };
  const low = []; let count = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, at = node.parentElement;
    if (!node.textContent.trim() || !at.checkVisibility() || at.closest("script")) continue;
    const style = getComputedStyle(at), ink = rgb(at instanceof SVGElement ? style.fill : style.color);
    count += 1;
    if (ratio(ink, behind(at)) < 4.5 || style.opacity !== "1") low.push([node.textContent, ratio(ink, behind(at))]);
  }
  for (const at of document.querySelectorAll("input:not([type=radio]), select, textarea"))
    if (at.checkVisibility() && ratio(rgb(getComputedStyle(at).borderTopColor), behind(at.parentElement)) < 3) low.push([at.id]);
  return [low, count, rgb(getComputedStyle(document.body).backgroundColor).slice(0, 3)];
}"""


def test_controls_have_names_and_the_page_has_landmarks_and_headings_in_order(service, show):
    page = open_all(show(service))
    session = page.context.new_cdp_session(page)
    nodes = [n for n in session.send("Accessibility.getFullAXTree")["nodes"] if not n["ignored"]]
    named = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if "role" in n]
    controls = {"button", "textbox", "searchbox", "radio", "combobox", "link", "table", "image", "region", "navigation"}
    assert [role for role, name in named if role in controls and not name.strip()] == []
    roles = [role for role, _ in named]
    assert {"banner", "main", "navigation", "contentinfo"} <= set(roles)
    assert roles.count("main") == 1
    regions = [name for role, name in named if role == "region"]
    assert regions == ["Compare searches", "Maps and their quality", "Newest plan", "Rollout"]
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].filter(h => h.checkVisibility()).map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"


def test_all_of_it_is_done_with_the_keyboard_and_focus_is_seen(service, show):
    page = show(service)
    page.locator("#rollout svg").wait_for()
    seen = []

    def focus_on(selector):
        for _ in range(40):
            page.keyboard.press("Tab")
            at = page.evaluate(FOCUS)
            assert at["outline"], at
            seen.append(at["name"])
            if page.locator(selector).evaluate("node => node === document.activeElement"):
                return
        raise AssertionError(f"{selector} is not reached: {seen}")

    focus_on("#query")
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    page.locator(".list").first.wait_for()
    focus_on("#base")
    page.keyboard.type("fused")
    focus_on("#plan button")
    assert "Of the hits of fused" in page.get_by_role("status").inner_text()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    focus_on("#refresh")
    page.keyboard.press("Enter")


FOCUS = """() => { const at = document.activeElement, style = getComputedStyle(at);
  return {name: at.id || at.textContent, outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2}; }"""


def test_it_fits_a_phone(service, show):
    page = open_all(show(service, width=320, has_touch=True))
    for index in ("live", "<i>"):
        page.get_by_label("Index").select_option(index)
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        cut = page.evaluate(
            "[...document.querySelectorAll('main *')].filter(n => n.checkVisibility() && !n.closest('.hush, thead, caption') && "
            "(n.getBoundingClientRect().right > 320 || n.getBoundingClientRect().left < 0)).map(n => n.outerHTML.slice(0, 90))"
        )
        assert cut == []
    small = page.evaluate(
        "[...document.querySelectorAll('button, select, input:not([type=radio])')].filter(n => n.checkVisibility() && "
        "n.getBoundingClientRect().height < 40).map(n => n.id)"
    )
    assert small == []


def test_nothing_moves_for_those_who_want_that(service, show):
    page = show(service, reduced_motion="reduce")
    assert page.evaluate("[getComputedStyle(document.documentElement).scrollBehavior, document.getAnimations().length]") == [
        "auto",
        0,
    ]
