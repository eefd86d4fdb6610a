"""Optional packages, versions and CPUs."""

import os
import sys
from importlib import metadata

import pytest

from swag_models.errors import ConfigError
from swag_models.runtime import count_cpus, find_versions, import_extra, read_environment


def test_an_installed_module_is_imported() -> None:
    assert import_extra("json.decoder") is sys.modules["json.decoder"]


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^the page needs no_such_package; install it with: pip install 'extra\[app\]'$",
    ):
        import_extra("no_such_package.part", "extra[app]", "the page")


def test_a_missing_dependency_of_an_installed_package_is_named(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "swag_models_test_extra.py").write_text("import no_such_dependency.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="the recipe needs no_such_dependency; "):
        import_extra("swag_models_test_extra")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_only_cpus_that_the_process_may_use_are_counted() -> None:
    allowed = os.sched_getaffinity(0)
    assert count_cpus() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert count_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_versions_of_packages_are_found_by_name() -> None:
    assert find_versions("torch", "pillow") == {
        name: metadata.version(name) for name in ("torch", "pillow")
    }


def test_a_package_that_is_not_installed_has_no_version() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^no-such-package is not installed; install it with: pip install 'extra\[x\]'$",
    ):
        find_versions("no-such-package", install="extra[x]")


@pytest.mark.parametrize("text", ["x", "-1", "", "1.5", "²", "9" * 5000, "1\x1b[2J"])
def test_a_number_in_the_environment_that_is_none_is_named(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(ConfigError, match=r"^WORLD_SIZE is .* in the environment; set an integer"):
        read_environment("WORLD_SIZE", 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert read_environment("WORLD_SIZE", 1) == 4
    monkeypatch.delenv("WORLD_SIZE")
    assert read_environment("WORLD_SIZE", 1) == 1
