"""MkDocs hook: adds the pages that are made from the code when the site is built."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import command_line
import record_schema
import servers


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Append the generated pages."""
    for name, write in {**command_line.PAGES, **record_schema.PAGES, **servers.PAGES}.items():
        files.append(File.generated(config, name, content=write()))
    return files
