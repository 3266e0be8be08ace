"""What mkdocs calls while it builds the site: pages made from files elsewhere, the navigation, the links."""

from mkdocs.structure.files import File
from pages import files, notebooks, origins, pages, relinked, rooms, title


def on_config(config):
    """Fill in the parts of the navigation that follow from what is there."""
    for entry in config.nav:
        for name, value in entry.items():
            if value == "chapters":
                entry[name] = course()
            elif value == "api":
                entry[name] = ["api/index.md", *({f"minflux.{room}": f"api/{room}.md"} for room in rooms())]
            elif name == "Project" and "tests.md" in origins().values():
                value.insert(-2, {"Tests": "tests.md"})
    return config


def course() -> list:
    """List the chapters for the navigation, and their solutions below them."""
    chapters = [{title(path): origins()[path]} for path in notebooks() if "solutions" not in path]
    solutions = [{title(path): origins()[path]} for path in notebooks() if "solutions" in path]
    return ["chapters/index.md", *chapters, {"Solutions": solutions}]


def on_files(files_, config):
    """Add the pages and files that are made from others."""
    for name, content in {**pages(), **files()}.items():
        files_.append(File.generated(config, name, content=content))
    return files_


def on_page_markdown(markdown, page, config, files):
    """Write a page's links for the site."""
    return relinked(markdown, page.file.src_uri)
