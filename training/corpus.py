"""Build the documentation half of the training corpus from packaged manuals.

The manuals are Debian packages: they have a version, a checksum and a stated licence, and `apt-get download` verifies
their signatures. Their HTML becomes plain text (navigation dropped, code kept), repeated paragraphs are dropped, and
whole documents are set aside by a hash of their name, so that the held-out text is the same on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lxml import etree, html


@dataclass(frozen=True)
class Manual:
    """A package to take, where its HTML lies inside, and under which terms its text may be used."""

    package: str
    root: str
    licence: str
    copyright: str


MANUALS = (
    Manual(
        "python3.11-doc",
        "usr/share/doc/python3.11/html",
        "PSF-2.0",
        "Copyright (c) 2001-2023 Python Software Foundation. All rights reserved.",
    ),
    Manual(
        "sqlite3-doc", "usr/share/doc/sqlite3", "Public domain (blessing)", "The authors of SQLite disclaim copyright."
    ),
    Manual(
        "postgresql-doc-15",
        "usr/share/doc/postgresql-doc-15/html",
        "PostgreSQL",
        "Portions Copyright (c) 1996-2026, PostgreSQL Global Development Group; "
        "Portions Copyright (c) 1994, The Regents of the University of California",
    ),
)

HELD_OUT_ONE_IN = 40
"""One document in so many is never trained on; chosen so that 300 to 400 kB of text are held out."""

SKIPPED_PAGES = re.compile(
    r"(genindex|py-modindex|search|contents|doc_\w+_crossref|keyword_index|sitemap|toc_db|bookindex|requirements\.html|lang_select)",
    re.I,
)
"""Indexes and cross-reference lists: names without sentences."""

DROPPED_TAGS = {"script", "style", "svg", "nav", "form", "button", "img", "head", "noscript", "input"}
DROPPED_CLASSES = {"nosearch", "navheader", "navfooter", "toc", "headerlink", "sphinxsidebar", "related", "footer"}
DROPPED_CLASSES |= {"hd_tmenu", "contents", "titlepage-nav", "id_link", "copybutton", "menu", "tagline", "searchmenu"}
BLOCK_TAGS = {"p", "li", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "tr", "blockquote", "table", "ul", "ol"}
BLOCK_TAGS |= {"dl", "div", "section", "body", "main", "article", "center", "tbody", "thead", "br", "hr"}
SHORTEST_DOCUMENT = 300
SHORTEST_REPEAT = 40
"""A shorter paragraph ("See also:", "}") may repeat; a longer one that was already seen is boilerplate."""


@dataclass(frozen=True)
class Document:
    name: str
    text: str


@dataclass(frozen=True)
class Entry:
    """One named thing of a manual and the sentence that explains it; the chat data asks about these."""

    document: str
    manual: str
    kind: str
    name: str
    text: str


def download(manual: Manual, cache: Path) -> Path:
    """Fetch the package into `cache` unless it is there, and return its path."""
    present = sorted(cache.glob(f"{manual.package}_*.deb"))
    if not present:
        subprocess.run(["apt-get", "download", manual.package], cwd=cache, check=True)
        present = sorted(cache.glob(f"{manual.package}_*.deb"))
    return present[-1]


def provenance(manual: Manual, deb: Path) -> dict[str, str]:
    """What a reader needs to get the same package again and to check it."""
    version = subprocess.run(["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True, text=True).stdout
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    return asdict(manual) | {"version": version.strip(), "sha256": digest}


def is_held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def is_dropped(node: html.HtmlElement) -> bool:
    if not isinstance(node.tag, str) or node.tag in DROPPED_TAGS:
        return True
    return bool(DROPPED_CLASSES & set((node.get("class") or "").split()))


def drop_navigation(root: html.HtmlElement) -> None:
    for node in [node for node in root.iter() if is_dropped(node)]:
        if node.getparent() is not None and node is not root:
            node.drop_tree()


def row_text(row: html.HtmlElement) -> str:
    return " | ".join(squeeze(cell.text_content()) for cell in row if cell.tag in ("td", "th"))


def blocks(node: html.HtmlElement) -> Iterator[str]:
    """Yield the paragraphs, headings, list items, table rows and code listings below `node`, in reading order."""
    inline: list[str] = [node.text or ""]

    def flush() -> Iterator[str]:
        text = squeeze("".join(inline))
        inline.clear()
        if text:
            yield text

    for child in node:
        if not isinstance(child.tag, str):
            inline.append(child.tail or "")
            continue
        if child.tag in BLOCK_TAGS:
            yield from flush()
            yield from block(child)
        elif any(inner.tag in BLOCK_TAGS for inner in child.iter() if inner is not child):
            yield from flush()
            yield from blocks(child)
        else:
            inline.append(child.text_content())
        inline.append(child.tail or "")
    yield from flush()


def block(node: html.HtmlElement) -> Iterator[str]:
    """The text of one block element, marked lightly as Markdown would mark it."""
    tag = node.tag
    if tag == "pre":
        code = node.text_content().strip("\n").rstrip()
        if code.strip():
            yield f"```\n{code}\n```"
    elif tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
        yield f"{'#' * int(tag[1])} {squeeze(node.text_content())}"
    elif tag == "tr":
        yield row_text(node)
    elif tag == "li":
        parts = list(blocks(node))
        if parts:
            yield "- " + parts[0]
            yield from parts[1:]
    else:
        yield from blocks(node)


def page_body(page: html.HtmlElement) -> html.HtmlElement:
    main = page.xpath('//div[@role="main"]')
    if main:
        return main[0]
    return page.find("body") if page.find("body") is not None else page


def read_page(path: Path) -> html.HtmlElement:
    """Parse one page; the encoding is stated because some pages declare none."""
    return html.fromstring(path.read_bytes(), parser=html.HTMLParser(encoding="utf-8"))


def page_title(page: html.HtmlElement) -> str:
    return squeeze(page.findtext(".//title") or "").split(" — ")[0]


def page_text(page: html.HtmlElement, body: html.HtmlElement) -> str:
    parts = [part for part in blocks(body) if part.strip("|-# ")]
    if not parts or not parts[0].startswith("#"):
        parts.insert(0, f"# {page_title(page)}")
    return "\n\n".join(parts)


def first_sentences(text: str, at_most: int = 240) -> str:
    """Whole sentences up to `at_most` characters: short answers are what a small model can learn."""
    kept = ""
    for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", squeeze(text)):
        if kept and len(kept) + len(sentence) > at_most:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def python_entries(document: str, body: html.HtmlElement) -> Iterator[Entry]:
    for node in body.xpath('.//dl[contains(@class, "py ")]'):
        kind = (node.get("class") or "").split()[1]
        for term in node.findall("dt"):
            name, dd = term.get("id"), term.getnext()
            if name and dd is not None and dd.tag == "dd" and dd.find("p") is not None:
                text = first_sentences(dd.find("p").text_content())
                yield Entry(document, "Python", kind, name, text)


def postgres_entries(document: str, body: html.HtmlElement) -> Iterator[Entry]:
    for node in body.xpath('.//div[@class="refnamediv"]/p'):
        name, _, text = squeeze(node.text_content()).partition(" — ")
        if document.startswith("postgresql-doc-15/sql-") and text:
            yield Entry(document, "PostgreSQL", "command", name, f"It is used to {text}.")


def sqlite_entries(document: str, title: str, body: html.HtmlElement) -> Iterator[Entry]:
    declared = re.search(r"\b(sqlite3_\w+)\(", body.findtext(".//pre") or "")
    paragraphs = [squeeze(p.text_content()) for p in body.iter("p")]
    long_enough = [p for p in paragraphs if len(p) > 40]
    if "/c3ref/" in document and declared and long_enough:
        yield Entry(document, "SQLite", "function", declared.group(1), first_sentences(long_enough[0]))


def entries(document: str, page: html.HtmlElement, body: html.HtmlElement) -> list[Entry]:
    found = {
        "python3.11-doc": lambda: python_entries(document, body),
        "sqlite3-doc": lambda: sqlite_entries(document, page_title(page), body),
        "postgresql-doc-15": lambda: postgres_entries(document, body),
    }[document.split("/")[0]]()
    return [entry for entry in found if 20 < len(entry.text) < 400 and entry.text.endswith((".", "!"))]


def read_manual(manual: Manual, unpacked: Path) -> Iterator[tuple[Document, list[Entry]]]:
    root = unpacked / manual.root
    for path in sorted(root.rglob("*.html")):
        name = f"{manual.package}/{path.relative_to(root).as_posix()}"
        if SKIPPED_PAGES.match(path.name):
            continue
        try:
            page = read_page(path)
        except etree.ParserError:  # an empty file: lxml has no tree to give
            continue
        body = page_body(page)
        drop_navigation(body)
        yield Document(name, page_text(page, body)), entries(name, page, body)


def without_repeats(documents: list[Document], seen: set[str]) -> list[Document]:
    """Drop every longer paragraph that an earlier document (or `seen`) has already; then drop what became too short."""
    kept = []
    for document in documents:
        parts = []
        for part in document.text.split("\n\n"):
            key = squeeze(part)
            if len(key) >= SHORTEST_REPEAT:
                if key in seen:
                    continue
                seen.add(key)
            parts.append(part)
        text = "\n\n".join(parts)
        if len(text) >= SHORTEST_DOCUMENT:
            kept.append(Document(document.name, text))
    return kept


def write_lines(path: Path, rows: list[Document] | list[Entry]) -> None:
    path.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def build(cache: Path) -> None:
    """Download, convert, deduplicate, split; write train.jsonl, heldout.jsonl, entries.jsonl and sources.json."""
    cache.mkdir(parents=True, exist_ok=True)
    sources, documents, found = [], [], []
    for manual in MANUALS:
        deb = download(manual, cache)
        unpacked = cache / deb.stem
        if not unpacked.exists():
            subprocess.run(["dpkg-deb", "-x", deb, unpacked], check=True)
        pages = list(read_manual(manual, unpacked))
        documents += [document for document, _ in pages]
        found += [entry for _, of_page in pages for entry in of_page]
        sources.append(provenance(manual, deb) | {"documents": len(pages)})
        print(f"{manual.package}: {len(pages)} pages")
    seen: set[str] = set()
    train = without_repeats([document for document in documents if not is_held_out(document.name)], seen)
    heldout = without_repeats([document for document in documents if is_held_out(document.name)], seen)
    write_lines(cache / "train.jsonl", train)
    write_lines(cache / "heldout.jsonl", heldout)
    write_lines(cache / "entries.jsonl", [entry for entry in found if not is_held_out(entry.document)])
    (cache / "sources.json").write_text(json.dumps(sources, indent=2) + "\n", encoding="utf-8")
    for label, rows in (("train", train), ("held-out", heldout)):
        print(f"{label}: {len(rows)} documents, {sum(len(row.text.encode()) for row in rows):,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "cache")
    build(parser.parse_args().cache)


if __name__ == "__main__":
    main()
