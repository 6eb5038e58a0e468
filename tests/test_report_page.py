"""The report's page in a real browser: what a click shows, and that nothing is loaded."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from lamina.cli import main
from lamina.tests.inspect.test_receptive_field import TWO

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
By = pytest.importorskip("selenium.webdriver.common.by").By
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver")

HOSTILE = """# </script><script>document.title = 'broken out'</script>
model Small {
  input image: f32[B, 1, 8, 8]
  output logits = image -> c1: conv(2, kernel=3, padding=1) -> flatten -> head: linear(3)
}
"""

LONG = """block ABlockWithALongNameThatFitsNowhere {
  input x: [B, C, H, W]
  output y = x -> a_layer_with_quite_a_long_name: conv(320, kernel=3, padding=1) -> relu
}
model Long {
  input image: f32[B, 3, 16, 16]
  output y = image -> an_instance_with_a_long_name: ABlockWithALongNameThatFitsNowhere
    -> up: conv_transpose(256, kernel=2, stride=2) -> head: conv(2, kernel=1)
}
"""
SHARED = """model Loop {
  input x: f32[B, 8]
  output y = x -> layers: repeat 4 shared { l: linear(8) -> tanh } -> head: linear(3)
}
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that keeps its console and its network log."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900",
                 "--disable-dev-shm-usage", "--disable-background-networking",
                 "--allow-file-access-from-files", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the pages are."""
    return tmp_path_factory.mktemp("pages")


def opened(browser, folder, model, *more):
    """The page of a model, open in the browser, with its console and loads looked at."""
    page = folder / "page.html"
    found = CliRunner().invoke(main, ["report", str(model), "-o", str(page), *more],
                               catch_exceptions=False)
    assert found.exit_code == 0, found.output
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    return browser


def node(browser, path):
    """The box of a layer; None where it is folded away."""
    index = browser.execute_script(
        "return boxes.findIndex((box) => box.path === arguments[0])", path)
    found = browser.find_elements(By.CSS_SELECTOR, f'.box[data-index="{index}"]')
    return found[0] if found else None


def click(browser, element):
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))",
                           element)


def text(browser, name):
    return browser.find_element(By.ID, name).text


def test_a_click_on_a_layer_shows_its_field(browser, folder):
    # LeNet-5's numbers, as the layer table has them: c3 sees 14 of 32 positions, 2 apart.
    page = opened(browser, folder, "lenet5")
    click(page, node(page, "c3"))
    assert text(page, "chosen") == "c3"
    assert text(page, "field") == ("Unit (4, 4) of 10×10 sees 14×14: rows 8 to 21, "
                                   "columns 8 to 21. Field 14, stride 2.")
    sees = page.find_element(By.CSS_SELECTOR, ".sees")
    assert [sees.get_attribute(name) for name in ("x", "y", "width", "height")] == \
        ["8", "8", "14", "14"]
    click(page, node(page, "f6"))
    assert text(page, "field") == "Every unit sees the whole input: 32×32."
    row = page.find_element(By.CSS_SELECTOR, "tr.selected")
    assert row.text.startswith("f6")


def slide(page, *units):
    """Choose a unit by its row and column."""
    sliders = page.find_elements(By.CSS_SELECTOR, "#plane input")
    for slider, unit in zip(sliders, units, strict=True):
        page.execute_script("arguments[0].value = arguments[1]; arguments[0].oninput()", slider,
                            unit)


def chosen(page, path):
    """Choose a box by its path, wherever it is."""
    page.execute_script("select(boxes.findIndex((box) => box.path === arguments[0]), {node: true})",
                        path)


def test_a_unit_at_the_border_sees_less(browser, folder):
    # The corner unit of ResNet's first layer has three rows of its seven in the padding.
    page = opened(browser, folder, "resnet#ResNet18")
    chosen(page, "stem.conv")
    slide(page, 0, 0)
    assert text(page, "field") == ("Unit (0, 0) of 112×112 sees 4×4: rows 0 to 3, columns 0 to 3. "
                                   "Field 7, stride 2.")
    assert page.find_element(By.CSS_SELECTOR, ".sees").get_attribute("height") == "4"


def test_units_after_upsampling_are_exact(browser, folder):
    # U-Net's units differ by their phase of sixteen: unit 193 sees 188 rows, from 192 on (measured
    # with PyTorch's gradients), not the 200 around 285 that the recursion gives.
    page = opened(browser, folder, "unet")
    chosen(page, "head")
    slide(page, 193, 0)
    assert "sees 188×" in text(page, "field") and "rows 192 to 379" in text(page, "field")


def test_units_without_rows_and_columns(browser, folder):
    # After flattening a unit has no row: the page said NaN once.
    page = opened(browser, folder, "lenet5")
    chosen(page, "flatten")
    assert text(page, "field") == ("Each unit sees 16 of 32×32; stride 4. Its units do not lie in "
                                   "rows and columns.")
    assert not page.find_elements(By.CSS_SELECTOR, "#plane input")


def test_several_pictures(browser, folder):
    # What a layer sees of one input is not drawn over another.
    (folder / "two.lam").write_text(TWO)
    page = opened(browser, folder, str(folder / "two.lam"))
    chosen(page, "c")
    assert " of 13×13 sees" in text(page, "field") and "Field 16, stride 4" in text(page, "field")
    page.find_elements(By.CSS_SELECTOR, "#plane .buttons button")[1].click()
    assert "Field 4, stride 1" in text(page, "field")
    chosen(page, "r")
    assert "Field 2, stride 1" in text(page, "field")
    assert not page.find_elements(By.CSS_SELECTOR, "#plane .buttons")


def test_blocks_fold_and_unfold(browser, folder):
    # A large model is read block by block; the keyboard does it too.
    page = opened(browser, folder, "resnet#ResNet18")
    assert node(page, "stages.0.first") is None
    click(page, node(page, "stages.0"))
    assert node(page, "stages.0.first") is not None
    assert node(page, "stages.0").get_attribute("aria-expanded") == "true"
    node(page, "stages.0").send_keys("\ue007")  # Enter
    assert node(page, "stages.0.first") is None
    page.find_element(By.ID, "unfold").click()
    assert node(page, "stages.3.rest.0.c2.conv") is not None


def test_a_row_opens_what_hides_its_layer(browser, folder):
    # From the table to the graph.
    page = opened(browser, folder, "resnet#ResNet18")
    rows = page.find_elements(By.CSS_SELECTOR, "tbody tr[data-index]")
    row = next(row for row in rows if row.text.startswith("stages.2.first.proj.conv"))
    click(page, row)
    assert "selected" in node(page, "stages.2.first.proj.conv").get_attribute("class")
    place = node(page, "stages.2.first.proj.conv").rect
    canvas = page.find_element(By.ID, "canvas").rect
    assert canvas["x"] < place["x"] < canvas["x"] + canvas["width"]


def test_the_table_sorts(browser, folder):
    # The costliest layer is a click away.
    page = opened(browser, folder, "lenet5")
    page.find_element(By.CSS_SELECTOR, 'button[title="Sort by MACs"]').click()
    first = page.find_element(By.CSS_SELECTOR, "#layers tbody tr")
    assert " ".join(first.text.split()) == \
        "c3 conv [B, 16, 10, 10] 2,416 240,000 480,000 6.25 KiB 14 / 2 8"


def test_hostile_text_does_not_break_out(browser, folder):
    # A model file of unknown origin is text, in the page as everywhere.
    path = Path(folder) / "hostile.lam"
    path.write_text(HOSTILE)
    page = opened(browser, folder, path)
    assert page.title == "Small - Lamina report"
    assert "</script><script>" in text(page, "texts")


def test_fit_shows_the_whole_graph(browser, folder):
    # An unfolded ResNet is four times as high as the canvas: it was shown from its top.
    page = opened(browser, folder, "resnet#ResNet18")
    page.find_element(By.ID, "unfold").click()
    page.find_element(By.ID, "fit").click()
    inside = page.execute_script("""
      const canvas = document.getElementById("canvas").getBoundingClientRect();
      return [...document.querySelectorAll(".box")].every((box) => {
        const place = box.getBoundingClientRect();
        return place.top >= canvas.top && place.bottom <= canvas.bottom
          && place.left >= canvas.left && place.right <= canvas.right;
      });""")
    assert inside


def test_texts_stay_inside_their_boxes(browser, folder):
    # Long names and numbers ran over the colour bar and out of the box.
    path = Path(folder) / "long.lam"
    path.write_text(LONG)
    page = opened(browser, folder, path)
    over = page.execute_script("""
      return [...document.querySelectorAll(".box")].flatMap((box) => {
        const body = box.querySelector(":scope > .body").getBoundingClientRect();
        return [...box.querySelectorAll(":scope > text")].filter((text) => {
          const place = text.getBoundingClientRect();
          return place.left < body.left + 5 || place.right > body.right;
        }).map((text) => text.textContent);
      });""")
    assert over == []
    shown = node(page, "an_instance_with_a_long_name.a_layer_with_quite_a_long_name")
    words = shown.find_elements(By.CSS_SELECTOR, "text")
    assert words[0].text.endswith("…")
    title = shown.find_element(By.CSS_SELECTOR, "title").get_attribute("textContent")
    assert title.startswith("an_instance_with_a_long_name.a_layer_with_quite_a_long_name\n")


def test_a_loop_over_the_same_weights_says_how_often(browser, folder):
    # `repeat 4 shared` looked like a layer that runs once.
    path = Path(folder) / "shared.lam"
    path.write_text(SHARED)
    page = opened(browser, folder, path)
    assert node(page, "layers.l").find_element(By.CSS_SELECTOR, ".name").text == "l ×4"
    assert node(page, "head").find_element(By.CSS_SELECTOR, ".name").text == "head"
    click(page, node(page, "layers.l"))
    assert "4 times with the same weights" in text(page, "about")


def test_the_memory_chart_has_numbers_and_the_table_a_sum(browser, folder):
    # The chart had no scale; the card showed the arena, the chart the live values, both unnamed.
    page = opened(browser, folder, "detector")
    known = page.execute_script("return JSON.parse(document.getElementById('data').textContent)")
    infer, train = known["memory"]
    charts = page.find_elements(By.CSS_SELECTOR, "#memory .chart")
    scale = charts[0].find_elements(By.CSS_SELECTOR, ".scale span")
    assert [one.text for one in scale] == ["0", "1.00 MiB", "2.00 MiB"]
    peak, arena = (f"{infer[name] / 2**20:.2f} MiB" for name in ("peak", "arena"))
    assert charts[0].find_element(By.TAG_NAME, "h3").text.endswith(
        f"peak of live values {peak}, arena {arena}")
    assert f"{arena}\narena of temporary values, batch 1" in text(page, "figures")
    rows = [row.text for row in charts[1].find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert rows[-2].startswith(f"{train['more']} more, together ")
    assert rows[-1] == f"peak: all of them {train['peak'] / 2**20:.0f} MiB"
    assert any(row.endswith("resnet.lam, 6") for row in rows)


def test_the_theme_can_be_chosen(browser, folder):
    # The system's setting is not always what a reader or a projector wants.
    page = opened(browser, folder, "lenet5")
    colour = "return getComputedStyle(document.body).backgroundColor"
    before, button = page.execute_script(colour), page.find_element(By.ID, "theme")
    shown = button.text
    button.click()
    assert page.execute_script(colour) != before
    assert {shown, button.text} == {"Light", "Dark"}
    button.click()
    assert page.execute_script(colour) == before
