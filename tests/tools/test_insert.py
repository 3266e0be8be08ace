"""Text is put between two marks of a page, or the page is left as it was."""

import io

import pytest

from tools import insert


def test_pages_that_lack_a_mark_are_refused():
    with pytest.raises(ValueError, match="expected the marks <!-- sizes: begin --> and"):
        insert.insert("<!-- sizes: begin --> but no end", "sizes", "text")


def test_inserting_twice_is_inserting_once():
    page = "a\n<!-- x: begin -->\n<!-- x: end -->\nb\n"
    once = insert.insert(page, "x", "old\n")
    assert once == "a\n<!-- x: begin -->\n\nold\n\n<!-- x: end -->\nb\n"
    assert insert.insert(insert.insert(page, "x", "new"), "x", "old") == once


def test_nothing_is_written_unless_all_pages_have_the_mark(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("<!-- x: begin --><!-- x: end -->")
    bad.write_text("no marks")
    monkeypatch.setattr("sys.stdin", io.StringIO("text"))
    with pytest.raises(SystemExit, match="expected the marks"):
        insert.main("x", str(good), str(bad))
    assert "text" not in good.read_text()
    monkeypatch.setattr("sys.stdin", io.StringIO("text"))
    insert.main("x", str(good))
    assert "text" in good.read_text()
