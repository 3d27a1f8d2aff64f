from __future__ import annotations

from pathlib import Path

import pytest

from consecution import Pipeline
from consecution.cli.target import load_target
from consecution.errors import UsageError
from tests.conftest import WriteModule

TWO = """
from consecution import Map, Pipeline
pipeline = Pipeline(Map(str, name="first"))
nightly = Pipeline(Map(str, name="second"))
number = 7
"""


def test_a_file_gives_the_pipeline_called_pipeline(write_module: WriteModule) -> None:
    found = load_target(str(write_module("target_plain", TWO)))

    assert isinstance(found, Pipeline)
    assert found.top_node.name == "first"


def test_a_name_after_a_colon_gives_that_one(write_module: WriteModule) -> None:
    path = write_module("target_named", TWO)

    assert load_target(f"{path}:nightly").top_node.name == "second"


def test_a_relative_path_will_do(write_module: WriteModule) -> None:
    write_module("target_relative", TWO)

    assert load_target("target_relative.py").top_node.name == "first"


def test_a_module_is_found_from_the_current_folder(write_module: WriteModule) -> None:
    write_module("target_module", TWO)

    assert load_target("target_module:nightly").top_node.name == "second"


def test_a_missing_name_lists_what_is_there(write_module: WriteModule) -> None:
    path = write_module("target_missing", TWO)

    with pytest.raises(UsageError, match="has no 'daily'; it has the pipelines nightly, pipeline"):
        load_target(f"{path}:daily")


def test_something_else_than_a_pipeline_is_refused(write_module: WriteModule) -> None:
    path = write_module("target_number", TWO)

    with pytest.raises(UsageError, match=r"'number' in .* is of the type int, and no Pipeline"):
        load_target(f"{path}:number")


def test_a_module_without_pipelines_says_so(write_module: WriteModule) -> None:
    path = write_module("target_empty", "x = 1")

    with pytest.raises(UsageError, match="it has no pipeline: write pipeline = "):
        load_target(str(path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"there is no file nowhere\.py: check the path"):
        load_target("nowhere.py")


def test_a_missing_module_is_named() -> None:
    with pytest.raises(UsageError, match=r"there is no module 'nowhere_at_all' .*: check the name"):
        load_target("nowhere_at_all:pipeline")


def test_a_file_that_no_worker_could_import_is_refused(write_module: WriteModule) -> None:
    path = write_module("not-a-name", TWO)

    with pytest.raises(UsageError, match="must be a Python name"):
        load_target(str(path))


def test_a_file_that_hides_behind_a_library_is_refused(write_module: WriteModule) -> None:
    path = write_module("json", TWO)

    with pytest.raises(UsageError, match="a module named 'json' exists already"):
        load_target(str(path))


def test_a_library_that_the_target_lacks_is_named(write_module: WriteModule) -> None:
    path = write_module("target_lacking", "import a_library_nobody_has")

    with pytest.raises(UsageError, match="No module named 'a_library_nobody_has'; install what it needs"):
        load_target(str(path))


@pytest.mark.parametrize(
    ("text", "error"), [("1 / 0", "ZeroDivisionError: division by zero"), ("def (", "SyntaxError: invalid syntax")]
)
def test_a_target_that_raises_when_imported_is_a_usage_error_with_its_place(
    write_module: WriteModule, text: str, error: str
) -> None:
    path = write_module("target_raising", f"\n\n{text}\n")

    with pytest.raises(UsageError, match="target_raising cannot be imported") as caught:
        load_target(str(path))

    assert error in str(caught.value)
    assert "line 3" in str(caught.value)


def test_a_file_that_imports_from_its_package_says_how_it_is_named(write_module: WriteModule, tmp_path: Path) -> None:
    package = tmp_path / "target_shop" / "flows"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "target_part.py").write_text("from .. import target_nowhere")

    with pytest.raises(UsageError) as caught:
        load_target("target_shop/flows/target_part.py")

    assert str(caught.value) == (
        "target_shop/flows/target_part.py is part of the package target_shop.flows, from which it imports, and cannot "
        f"stand alone: name it as target_shop.flows.target_part, in the folder {tmp_path}"
    )
