"""The site in a real browser: read, search, sign in, vote, comment and subscribe, by mouse and by keyboard."""

import re
from collections.abc import Iterator
from datetime import date

import pytest
from playwright.sync_api import Browser, expect
from tests.site.browser_cases import KEY, Live, Reader, launched, reader

PAPER = f"/papers/{KEY}"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Serve one site to the tests of this file."""
    served = Live(tmp_path_factory.mktemp("site"))
    yield served
    served.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start one browser for the tests of this file."""
    with launched() as started:
        yield started


@pytest.fixture
def stranger(browser: Browser, live: Live) -> Iterator[Reader]:
    """Return the window of somebody who is not signed in."""
    with reader(browser, live) as opened:
        yield opened


def focused(window: Reader) -> str:
    """Return the text of what has the focus."""
    return str(window.page.evaluate("document.activeElement.textContent.trim()"))


def test_days_weeks_and_months_are_turned_and_picked(stranger: Reader) -> None:
    page = stranger.open("/")
    expect(page.locator("h1")).to_have_text("Friday, 20 November 2026")
    page.get_by_role("link", name="Thu 19 Nov").click()
    expect(page.locator("h1")).to_have_text("Thursday, 19 November 2026")
    expect(page.locator("[data-paper]")).to_have_count(1)
    page.get_by_role("link", name="Fri 20 Nov").click()
    expect(page.locator("h1")).to_have_text("Friday, 20 November 2026")
    page.get_by_role("link", name="Week", exact=True).click()
    expect(page.locator("h1")).to_have_text("16 – 22 November 2026")
    expect(page.locator("[data-paper]")).to_have_count(4)
    page.get_by_role("link", name="Month", exact=True).click()
    expect(page.locator("h1")).to_have_text("November 2026")
    page.get_by_role("link", name=re.compile("^18.*2 papers")).click()
    expect(page.locator("h1")).to_have_text("Wednesday, 18 November 2026")
    page.get_by_label("Go to a day").fill("2026-11-19")
    page.get_by_role("button", name="Go", exact=True).click()
    expect(page.locator("h1")).to_have_text("Thursday, 19 November 2026")


def test_keys_move_open_vote_and_explain_themselves(browser: Browser, live: Live) -> None:
    with reader(browser, live, "ada") as window:
        page = window.open("/?day=2026-11-18&view=week")
        titles = page.locator("[data-paper] h2").all_inner_texts()
        for key, at in (("j", 0), ("j", 1), ("j", 2), ("k", 1)):
            page.keyboard.press(key)
            assert focused(window) == titles[at]
        chosen = page.locator("[data-paper]").nth(1)
        before = int(re.sub(r"\D", "", chosen.locator(".vote button").inner_text()))
        page.keyboard.press("v")
        expect(chosen.locator(".vote button")).to_have_text(f"▲ {before + 1}")
        expect(chosen.locator(".vote button")).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#said")).to_have_text("Your vote counts")
        assert focused(window) == titles[1]
        page.keyboard.press("v")
        expect(chosen.locator(".vote button")).to_have_text(f"▲ {before}")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
        page.keyboard.press("j")  # keys mean nothing beside it
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
        page.keyboard.press("o")
        expect(page.locator("h1")).to_have_text(titles[1])


def test_keys_are_left_alone_where_somebody_types(stranger: Reader) -> None:
    page = stranger.open("/")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.type("jov?/")
    expect(page.locator("#find")).to_have_value("jov?/")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()


def test_a_stranger_who_votes_signs_in_by_mail_and_comes_back(stranger: Reader, live: Live) -> None:
    page = stranger.open(PAPER)
    page.locator(".vote button").click()
    page.wait_for_url("**/sign-in?next=*")
    page.get_by_label("E-mail address").fill("sofia@example.org")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_contain_text("sofia@example.org")
    page.goto(live.mailed("sofia@example.org", "/sign-in/"))
    page.locator("main button").click()
    expect(page).to_have_url(live.base + PAPER)
    page.locator(".vote button").click()
    expect(page.locator(".vote button")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("document.activeElement.matches('.vote button')")
    page.get_by_label("Your comment").fill("I see it *too*. <script>alert(1)</script>")
    page.get_by_role("button", name="Comment", exact=True).click()
    said = page.get_by_role("article", name="Comment by sofia")
    expect(said.locator("em")).to_have_text("too")
    expect(said.locator("script")).to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in", exact=True).first).to_be_visible()


def test_a_digest_is_asked_for_confirmed_and_ended(stranger: Reader, live: Live) -> None:
    page = stranger.open("/subscribe")
    expect(page.get_by_label("Family", exact=True)).to_be_hidden()
    page.get_by_label("Those of a family").check()
    expect(page.get_by_label("Family", exact=True)).to_be_visible()
    page.get_by_label("All", exact=True).check()
    page.get_by_label("E-mail address").fill("olga@example.org")
    page.get_by_role("button", name="Subscribe").click()
    expect(page.locator("main")).to_contain_text("olga@example.org")
    page.goto(live.mailed("olga@example.org", "/subscriptions/confirm/"))
    page.locator("main button").click()
    expect(page.locator("h1")).to_have_text("You are subscribed")
    live.send_digests(date(2026, 11, 20))
    page.goto(live.mailed("olga@example.org", "/papers/"))
    expect(page.locator("h1")).to_have_text("Gradient noise at the edge of stability")
    page.goto(live.mailed("olga@example.org", "/unsubscribe/"))
    page.locator("main button").click()
    expect(page.locator("h1")).to_have_text("You are unsubscribed")


def test_search_goes_along_with_what_is_typed(stranger: Reader, live: Live) -> None:
    live.wait_for_search()
    page = stranger.open("/search")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("gompertz")
    expect(page.locator("[data-paper] h2").first).to_contain_text("Gompertz Linear Units")
    expect(page.locator("[data-paper] h2 mark").first).to_have_text("Gompertz")
    expect(page).to_have_url(f"{live.base}/search?q=gompertz")
    expect(page.locator("#said")).to_contain_text("Papers 1 to")
    assert page.evaluate("document.activeElement.id") == "q"  # typing goes on
    page.get_by_label("Family").select_option("attention")
    page.wait_for_url("**/search?q=gompertz&family=attention")
    expect(page.locator("[data-paper] h2", has_text="Gompertz Linear")).to_have_count(0)
    page.go_back()
    expect(page).to_have_url(f"{live.base}/search?q=gompertz")
    expect(page.locator("[data-paper] h2").first).to_contain_text("Gompertz Linear Units")
    page.locator("[data-paper] h2 a").first.click()
    related = page.get_by_role("complementary", name="Related").get_by_role("link")
    expect(related.first).to_be_visible()
    page.get_by_role("link", name="More like this").click()
    expect(page.locator("h1")).to_contain_text("Gompertz Linear Units")
    expect(page.locator("[data-paper]").first).to_be_visible()


def test_code_is_copied_and_said(browser: Browser, live: Live) -> None:
    with reader(browser, live, permissions=["clipboard-read", "clipboard-write"]) as window:
        page = window.open("/papers/golu")
        page.get_by_role("button", name="Copy").click()
        expect(page.locator("#said")).to_have_text("Copied")
        assert 'golu = make("golu")' in page.evaluate("navigator.clipboard.readText()")


def test_the_keyboard_alone_reaches_everything(stranger: Reader) -> None:
    page = stranger.open("/")
    page.keyboard.press("Tab")
    assert focused(stranger) == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(focused(stranger))
        lines = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        if reached[-1] == "About":
            break
        assert lines != "none", f"nothing shows that {reached[-1]!r} has the focus"
    title = page.locator("[data-paper] h2").inner_text()
    order = [reached.index(name) for name in ("Week", title, "Go", "About")]
    assert order == sorted(order)
    page.locator("[data-paper] h2 a").focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(title)


def test_without_scripts_all_of_it_works(browser: Browser, live: Live) -> None:
    with reader(browser, live, "ada", java_script_enabled=False) as window:
        page = window.open(PAPER)
        before = page.locator(".vote button").get_attribute("aria-pressed")
        page.locator(".vote button").click()
        expect(page).to_have_url(live.base + PAPER)
        assert page.locator(".vote button").get_attribute("aria-pressed") != before
        expect(page.get_by_role("button", name="Copy")).to_have_count(0)
        page.locator("#find").fill("golu")
        page.locator("#find").press("Enter")
        expect(page).to_have_url(re.compile(r"/search\?q=golu"))
        expect(page.locator("[data-paper] h2").first).to_contain_text("Gompertz")


def test_the_first_page_is_small_and_fast(browser: Browser, live: Live) -> None:
    sizes = """performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))
        .map(e => e.transferSize).reduce((a, b) => a + b)"""
    times: list[float] = []
    while len(times) < 25 and min(times, default=300) >= 300:  # the machine may be busy with others
        with reader(browser, live) as window:  # which has nothing of the site yet
            page = window.open("/")
            assert 10_000 < page.evaluate(sizes) < 100_000
            times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
    assert min(times) < 300
