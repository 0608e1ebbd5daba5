"""The dashboard in a real headless Chromium: content, live updates, keyboard, screen reader, themes, phones, restarts."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from waiting import PATIENCE, until

from streamcl.bench.local import LocalDaemon
from streamcl.storage.matrix import matrix_of

pytestmark = pytest.mark.campaign

HOSTILE = "<img src=x onerror=document.title='owned'>"
TREE: dict[str, Any] = {
    "model": {"factory": "streamcl.models:linear", "classes": 4},
    "train": {"batch_size": 16, "epochs": 2},
    "posterior": {"mode": "factors", "scale": 1.0},
}


def rows(seed: int, n: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    return np.eye(4, 6, dtype="<f4")[y] + rng.normal(scale=0.3, size=(n, 6)).astype("<f4"), y


def feed(daemon: LocalDaemon) -> None:
    """Three tasks from two producers, the first of them again, an event of every usual kind."""
    with daemon.producer("camera") as camera, daemon.producer("lidar") as lidar:
        for number, task in enumerate(("monday", HOSTILE, "wednesday")):
            camera.send(*rows(number), task)
            camera.flush()
            lidar.send(*rows(10 + number), task)
            lidar.flush()
            camera.boundary(task)
        camera.revisit("monday")
        camera.send(*rows(0), "monday")
        camera.boundary("monday")
        camera.send(*rows(7), "thursday")
        camera.flush()
    with daemon.admin() as admin:
        until(lambda: admin.status()["samples_seen"] == 256)  # durable is not yet learned


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDaemon]:
    place = tmp_path_factory.mktemp("dashboard")
    for task in ("monday", "wednesday"):
        x, y = rows(99, 400)
        np.savez(place / f"{task}.npz", x=x, y=y)
    with LocalDaemon({**TREE, "evaluation": {"directory": str(place)}}, place / "state") as made:
        feed(made)
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        missing = "chromium and chromedriver are not installed (`sh deploy/ci-tools` does, on Debian)"
        if os.environ.get("STREAMCL_CHECKERS"):
            pytest.fail(missing)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(driver))
    made.set_script_timeout(PATIENCE)
    yield made
    made.quit()


class Page:
    """The dashboard as a person meets it."""

    def __init__(self, browser: webdriver.Chrome, daemon: LocalDaemon, width: int = 1280, scheme: str = "light") -> None:
        self.browser = browser
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(daemon.url("/"))
        self.until(lambda: self["#tiles .value"].text and self["#tasks tbody"] and self["#loss svg path.line"])

    def __getitem__(self, selector: str) -> WebElement:
        found = self.all(selector)
        assert found, f"{selector} is not on the page"
        return found[0]

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of all that match, read at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
        return list(self.browser.execute_script(script, selector))

    def script(self, text: str, *arguments: Any) -> Any:
        return self.browser.execute_script(text, *arguments)

    def press(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def focused(self) -> str:
        return str(self.script("const e = document.activeElement; return e.id || e.parentElement.id || e.className"))

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if condition():
                    return
            except (AssertionError, StaleElementReferenceException):
                pass
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s; the page says:\n{self['body'].text}"
            time.sleep(0.05)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def tile(self, title: str) -> str:
        return dict(zip(self.texts("#tiles dt"), self.texts("#tiles dd.value"), strict=True))[title]


@pytest.fixture
def page(browser: webdriver.Chrome, daemon: LocalDaemon) -> Page:
    return Page(browser, daemon)


def test_it_shows_the_state_the_tasks_the_producers_and_what_happened(page: Page) -> None:
    assert page["#state"].text == "training: thursday"
    assert "factors" in page["#facts"].text
    assert page.tile("Tasks") == "3"
    assert page.tile("Credit") == "16"
    assert "GiB" in page["#tiles meter"].find_element(By.XPATH, "..").text
    page.until(lambda: page.tile("Samples learned") == "256")
    assert page.texts("#tasks tbody th") == ["wednesday", HOSTILE, "monday"]
    assert page.texts("#tasks thead th")[-3:] == ["estimated rise", "revisit", "closed"]
    producers = {row.split("\t")[0]: row for row in page.texts("#producers tbody tr")}
    assert set(producers) == {"camera", "lidar"}
    assert producers["lidar"].split("\t")[1] == "3"
    assert "ago" in producers["camera"]
    events = "\n".join(page.texts("#events li"))
    assert "boundary monday" in events
    assert "revisit monday" in events
    assert page.script("return document.title") != "owned"
    assert not page.all("img")


def test_every_chart_says_in_words_what_it_draws(page: Page) -> None:
    charts = {chart.get_attribute("id"): page[f"#{chart.get_attribute('id')} svg"] for chart in page.all("figure")}
    assert set(charts) == {"loss", "accuracy", "rate", "lag", "rise"}
    for name, svg in charts.items():
        assert svg.get_attribute("role") == "img"
        page.until(lambda name=name: "nothing yet" not in str(page[f"#{name} svg"].get_attribute("aria-label")))
        page.until(lambda name=name: page.all(f"#{name} svg path.line"))
    page.until(lambda: "monday" in str(page["#rise svg"].get_attribute("aria-label")))
    strokes = [line.get_attribute("stroke") for line in page.all("#rise path.line")]
    assert len(set(strokes)) == len(strokes) == 3
    assert page.all("#rise .again"), "a revisit has its marker"
    assert page.all("#loss line.event.revisit")
    assert page.all("#loss line.event.boundary")


def test_the_accuracy_of_each_task_after_each_boundary_is_a_heat_map(page: Page) -> None:
    page.until(lambda: page["#matrix"].is_displayed() and len(page.texts("#cells thead th")) > 1)
    heads, tasks = page.texts("#cells thead th"), page.texts("#cells tbody th")
    assert tasks == ["monday", "wednesday"]
    assert heads[0] == "task"
    assert set(heads[1:]) <= {"monday", HOSTILE, "wednesday", "\u21bb monday"}
    cells = "return [...document.querySelectorAll('#cells td:not(.blank)')].map((c) => "
    shares = page.script(cells + "[c.innerText, c.style.getPropertyValue('--share')])")
    assert shares
    assert all(abs(float(text) - float(share)) < 0.01 for text, share in shares)
    assert "rgba(0, 0, 0, 0)" not in page.script(cells + "getComputedStyle(c).backgroundColor)")
    assert page.texts("#tasks thead th").count("accuracy") == 1


def test_what_evaluate_says_stands_below_it(page: Page, daemon: LocalDaemon) -> None:
    page.until(lambda: page["#matrix"].is_displayed() and len(page.texts("#figures dt")) > 1)

    def told() -> dict[str, str]:
        figures = matrix_of(Path(daemon.state_dir)).figures()
        return {name.replace("_", " ").capitalize(): f"{v:.3f}" for name, v in figures.items() if v is not None}

    assert "Average accuracy" in told()
    page.until(lambda: dict(zip(page.texts("#figures dt"), page.texts("#figures dd"), strict=False)) == told())


def test_it_asks_nobody_but_the_daemon_and_the_console_stays_clean(page: Page, daemon: LocalDaemon) -> None:
    before = page.script("return performance.getEntriesByType('resource').length")
    page.until(lambda: page.script("return performance.getEntriesByType('resource').length") > before + 5)
    asked = page.script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert {url.partition("?")[0] for url in asked} == {daemon.url(path) for path in ("/status", "/overview", "/history")}
    assert page.errors() == []


def test_what_happens_is_shown_without_a_reload(browser: webdriver.Chrome, start: Callable[..., LocalDaemon]) -> None:
    """On a daemon of its own: the other tests' shows what `feed` has left, in whatever order they come."""
    daemon = start(TREE)
    feed(daemon)
    page = Page(browser, daemon)
    page.script("window.same = true")
    samples = int(page.tile("Samples learned"))
    with daemon.producer("radar") as radar, daemon.admin() as admin:
        radar.send(*rows(20), "thursday")
        radar.flush()
        page.until(lambda: int(page.tile("Samples learned")) == samples + 32)
        page.until(lambda: "radar" in page.texts("#producers tbody th"))
        admin.pause()
        page.until(lambda: page["#state"].text.startswith("paused"))
        admin.resume()
        page.until(lambda: page["#state"].text.startswith("training"))
    page.until(lambda: "resumed" in "\n".join(page.texts("#events li")))
    assert page.script("return window.same")
    assert page.errors() == []


def test_a_consolidation_shows_how_far_it_is_and_the_time_left(
    browser: webdriver.Chrome, start: Callable[..., LocalDaemon]
) -> None:
    slow = start({**TREE, "train": {"batch_size": 4, "epochs": 2000}})
    with slow.producer() as producer, slow.admin() as admin:
        producer.send(*rows(0, 400), "long")
        producer.flush()
        while admin.status()["samples_seen"] < 400:
            time.sleep(0.05)
        browser.get(slow.url("/"))
        producer.boundary("long", wait=False)
        producer.flush()
        shown = Page.__new__(Page)
        shown.browser = browser
        shown.until(lambda: shown["#consolidation"].is_displayed() and "left" in shown["#left"].text)
        assert "of 2000" in shown["#left"].text
        first = float(str(shown["#done"].get_property("value")))
        shown.until(lambda: first < float(str(shown["#done"].get_property("value"))) <= 1.0)


def test_the_keyboard_reaches_everything_and_reads_the_charts(page: Page) -> None:
    page.until(lambda: page["#matrix"].is_displayed())
    page.press(Keys.TAB)
    assert page["a.skip"].is_displayed()
    page.press(Keys.ENTER)
    assert page.focused() == "main"
    reached = []
    for _ in range(40):
        page.press(Keys.TAB)
        reached.append(page.focused())
        if reached[-1] == "events":
            break
    assert [name for name in reached if name != "ranges"] == [
        "loss",
        "accuracy",
        "rate",
        "lag",
        "matrix",
        "rise",
        "scroll",
        "scroll",
        "events",
    ]
    assert reached.count("ranges") == 5
    svg = page["#rise svg"]
    page.script("arguments[0].focus()", svg)
    page.press(Keys.END)
    newest = page["#rise .readout"].text
    assert newest.startswith("after \u21bb monday: ")
    page.press(Keys.ARROW_LEFT)
    page.until(lambda: page["#rise .readout"].text.startswith("after wednesday: "))
    page.press(Keys.ESCAPE)
    page.until(lambda: not page["#rise .readout"].text.startswith("after "))


def test_the_time_shown_is_chosen_by_a_button(page: Page) -> None:
    buttons = page.all("#ranges button")
    assert [button.text for button in buttons if button.get_attribute("aria-pressed") == "true"] == ["1 h"]
    page.script("arguments[0].focus()", buttons[-1])
    page.press(Keys.ENTER)
    assert buttons[-1].get_attribute("aria-pressed") == "true"
    page.until(
        lambda: any(
            "seconds=0" in url for url in page.script("return performance.getEntriesByType('resource').map((e) => e.name)")
        )
    )
    assert page.errors() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_screen_reader_and_weak_eyes_are_served(
    browser: webdriver.Chrome, daemon: LocalDaemon, width: int, scheme: str
) -> None:
    page = Page(browser, daemon, width, scheme)
    found = Axe().run(browser)  # axe-core: WCAG 2.1 A and AA with its contrasts, and best practice
    wrong = [f"{v['id']}: {v['help']}: {[node['html'][:120] for node in v['nodes']]}" for v in found["violations"]]
    assert wrong == []
    assert len(found["passes"]) > 20
    assert page.errors() == []


def test_dark_follows_the_system(browser: webdriver.Chrome, daemon: LocalDaemon) -> None:
    def lightness(scheme: str) -> int:
        page = Page(browser, daemon, scheme=scheme)
        colour = page.script("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])

    assert lightness("dark") < 150
    assert lightness("light") > 600


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_sticks_out_on_a_small_screen(browser: webdriver.Chrome, daemon: LocalDaemon, width: int) -> None:
    page = Page(browser, daemon, width)
    assert page.script("return document.documentElement.scrollWidth") <= width
    tall = {svg.size["height"] for svg in page.all("figure svg")}
    assert min(tall) > 100


def test_the_history_outlives_the_daemon_and_the_page_waits_for_it(
    browser: webdriver.Chrome, start: Callable[..., LocalDaemon]
) -> None:
    daemon = start(TREE)
    feed(daemon)
    page = Page(browser, daemon)
    page.script("window.same = true")

    def times() -> list[float]:
        return list(page.script("return history.samples.time"))

    page.until(lambda: len(times()) >= 2)
    before = times()
    daemon.kill_all()
    page.until(lambda: "does not answer" in page["#problem"].text)
    daemon.start()
    page.until(lambda: not page["#problem"].is_displayed() and page["#state"].text == "training: thursday")
    page.until(lambda: len(times()) > len(before))
    assert set(before) <= set(times())
    assert page.script("return window.same")
    assert "monday" in "\n".join(page.texts("#events li"))
    assert page.all("#rise .again")
