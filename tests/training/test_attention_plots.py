# SPDX-License-Identifier: Apache-2.0
"""Heat maps as drawn: what stands where, read from the figure itself."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image as PilImage

from modeling_mclfir.training import attention_plots

GREEN, RED = "#009E73", "#D55E00"


def tile(colour=(128, 128, 128), size=(30, 40)):
    return PilImage.new("RGB", size, colour)


def entry_of(predicted="long", value="long", increment="cut", attribute="sleeve", peak=5):
    """A map of 4 × 4 places with its peak, in multiples of the average, in the first."""
    attention = np.full((4, 4), (16 - peak) / 15 / 16, dtype=np.float32)
    attention[0, 0] = peak / 16
    correct = predicted == value if None not in (predicted, value) else None
    numbers = {"confidence": 0.875 if predicted else 0.0, "chance": 0.25 if predicted else 0.0}
    names = {"increment": increment, "attribute": attribute, "predicted": predicted, "value": value}
    return {**names, **numbers, "correct": correct, "attention": attention}


@pytest.fixture
def drawn(monkeypatch):
    """Draws with `plot_attention` or `plot_photo` → the figure."""
    figures = []
    monkeypatch.setattr(attention_plots, "write_png", lambda figure, path: figures.append(figure))

    def draw(plot, content, **settings):
        plot(content, "nowhere.png", **settings)
        return figures[-1]

    return draw


def photo(drawn, *entries, image=None, **settings):
    example = {"image": image or tile(), "maps": list(entries)}
    return drawn(attention_plots.plot_photo, example, **settings)


def captions(figure) -> list[str]:
    """All text as it is shown, without title and notes."""
    return [text.get_text().replace(r"\$", "$") for text in figure.texts[1:-1]]


def colour_of(figure, shown: str) -> str:
    return next(text.get_color() for text in figure.texts if text.get_text() == shown)


def test_a_right_value_is_ticked_and_its_label_not_repeated(drawn):
    figure = photo(drawn, entry_of())
    assert captions(figure) == ["photo", "cut", "sleeve", "✓ long", "88%, by chance 25%", "peak 5.0×"]
    assert colour_of(figure, "✓ long") == GREEN


def test_a_wrong_value_is_crossed_and_stands_with_its_label(drawn):
    figure = photo(drawn, entry_of("short", "long"))
    assert captions(figure)[3:] == ["✗ short", "88%, by chance 25%", "label: long", "peak 5.0×"]
    assert colour_of(figure, "✗ short") == RED


def test_without_a_label_a_value_is_neither(drawn):
    figure = photo(drawn, entry_of("short", None), entry_of())
    assert captions(figure)[3:7] == ["short", "88%, by chance 25%", "no label", "peak 5.0×"]
    assert colour_of(figure, "short") not in (GREEN, RED)
    assert "✓" in figure.texts[-1].get_text()


def test_where_no_photo_has_labels_nothing_is_said_of_them(drawn):
    bare = {key: value for key, value in entry_of("short", None).items() if key not in ("value", "correct")}
    figure = photo(drawn, bare)  # as `photo_maps` gives it
    assert captions(figure)[3:] == ["short", "88%, by chance 25%", "peak 5.0×"]
    assert "✓" not in figure.texts[-1].get_text()


def test_where_nobody_votes_there_is_no_value(drawn):
    assert captions(photo(drawn, entry_of(None, "long")))[3:] == ["no vote", "label: long", "peak 5.0×"]
    assert captions(photo(drawn, entry_of(None, None)))[3:] == ["no vote", "peak 5.0×"]


def test_names_stand_as_they_are(drawn):
    odd = {"increment": "of$a$", "attribute": "price $5_or $6", "predicted": "$x$", "value": "$y$"}
    figure = photo(drawn, entry_of(**odd), title="Where the model looks in $photo$.jpg")
    FigureCanvasAgg(figure).draw()  # an unescaped $x^$ would end here
    assert captions(figure)[1:4] == ["of$a$", "price $5 or $6", "✗ $x$"] and "label: $y$" in captions(figure)
    assert all(text.get_text().count("$") == text.get_text().count(r"\$") for text in figure.texts)
    assert figure.texts[0].get_text() == r"Where the model looks in \$photo\$.jpg"


def many(number: int) -> list[dict]:
    long = ["a rather long attribute, with a subclause", "x", "Pneumonoultramicroscopic_sleeve"]
    values = [("multi-coloured, horizontally striped", "plain"), ("no", "no"), ("yes", None), (None, "no")]
    return [
        entry_of(*values[place % 4], f"increment_of_season_{place // 5}", long[place % 3]) for place in range(number)
    ]


def assert_nothing_overlaps(figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    page = figure.bbox
    boxes = [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
    pictures = [axes.get_window_extent(renderer) for axes in figure.axes]
    for box in boxes + pictures:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    pairs = [
        *itertools.combinations(boxes, 2),
        *itertools.combinations(pictures, 2),
        *itertools.product(boxes, pictures),
    ]
    for one, two in pairs:
        across = min(one.x1, two.x1) - max(one.x0, two.x0)
        down = min(one.y1, two.y1) - max(one.y0, two.y0)
        assert across <= 0 or down <= 1, (one, two)  # lines of text may touch


@pytest.mark.parametrize("size", [(192, 256), (256, 100), (60, 256)])
@pytest.mark.parametrize("number", [1, 4, 26])
def test_every_attribute_of_a_photo_is_shown_and_legible(drawn, number, size):
    figure = photo(drawn, *many(number), image=tile(size=size))
    assert len(figure.axes) == number + 1
    assert sum(text.startswith("peak") for text in captions(figure)) == number
    assert_nothing_overlaps(figure)
    for axes in figure.axes:  # no photo is stretched
        box = axes.get_window_extent()
        assert box.width / box.height == pytest.approx(size[0] / size[1], rel=0.02)
        assert 100 < max(box.width, box.height) < 250  # of 100 dots an inch


def test_the_page_of_photos_takes_attributes_by_turns_and_says_how_many(drawn):
    maps = [entry_of(increment="cut", attribute=f"c{k}") for k in range(5)]
    maps += [entry_of(increment="surface", attribute=f"s{k}") for k in range(2)]
    maps += [entry_of(increment="details", attribute="d0")]
    examples = [{"image": tile(size=size), "maps": maps} for size in ((30, 40), (90, 40), (40, 120))]
    figure = drawn(attention_plots.plot_attention, examples)
    shown = [text for text in captions(figure) if text[1:] in "01234" and len(text) == 2]
    assert shown == ["c0", "c1", "c2", "s0", "s1", "d0"]
    assert "6 of 8 attributes are shown." in figure.texts[-1].get_text()
    assert len(figure.axes) == 3 * 7
    assert_nothing_overlaps(figure)
    few = drawn(attention_plots.plot_attention, [{"image": tile(), "maps": maps[:3]}])
    assert "attributes are shown" not in few.texts[-1].get_text() and len(few.axes) == 4


def test_photos_stand_in_rows_under_their_attributes(drawn):
    wrong, right = entry_of("short", "long"), entry_of()
    rows = [[right, wrong, right], [wrong, right, wrong]]
    examples = [{"image": tile(), "maps": [dict(entry) for entry in maps]} for maps in rows]
    figure = drawn(attention_plots.plot_attention, examples)
    marks = [(text.get_position(), text.get_text()[0]) for text in figure.texts if text.get_text()[0] in "✓✗"]
    grid = sorted((-round(y, 3), round(x, 3), mark) for (x, y), mark in marks)
    assert [mark for *_, mark in grid] == ["✓", "✗", "✓", "✗", "✓", "✗"]
    assert len({x for _, x, _ in grid}) == 3 and len({y for y, _, _ in grid}) == 2


def test_the_file_is_written(tmp_path):
    attention_plots.plot_photo({"image": tile(), "maps": [entry_of()]}, tmp_path / "page.png")
    with PilImage.open(tmp_path / "page.png") as image:
        image.verify()
        assert image.format == "PNG" and image.size[0] > 600
    with pytest.raises(ValueError, match="no attention examples"):
        attention_plots.plot_attention([], tmp_path / "none.png")
    with pytest.raises(ValueError, match="no attention maps"):
        attention_plots.plot_photo({"image": tile(), "maps": []}, tmp_path / "none.png")


def test_overlay_is_hot_where_the_attention_is():
    attention = np.zeros((4, 4), dtype=np.float32)
    attention[0, 3] = 1
    picture = attention_plots.overlay(tile(size=(80, 120)), attention)
    assert picture.shape == (120, 80, 3) and picture.min() >= 0 and picture.max() <= 1
    grey = np.full(3, 128 / 255)
    np.testing.assert_allclose(picture[-10, 5], grey, atol=1e-3)  # far corner: the photo itself
    yellow = picture[15, 70]
    assert yellow[0] > 0.6 and yellow[1] > 0.6 and yellow[2] < 0.4


def test_overlay_shows_no_peak_where_there_is_none():
    even = attention_plots.overlay(tile(size=(80, 120)), np.full((4, 4), 1 / 16, dtype=np.float32))
    assert np.ptp(even.reshape(-1, 3), axis=0).max() < 1e-3
    assert even[0, 0, 1] < 0.5  # not the yellow of a peak
