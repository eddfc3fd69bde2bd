"""A configuration file without `name` is refused before anything else happens."""

from __future__ import annotations

import pytest

from backdoor_lab.config_loader import NAMED
from backdoor_lab.core.errors import ConfigError
from tests.helpers.cells import configuration


@pytest.mark.parametrize("section", NAMED)
def test_a_section_without_a_name_is_refused_with_its_key(section: str, tmp_path: object) -> None:
    with pytest.raises(ConfigError, match=rf"`{section}\.name` is missing.*conf/{section}"):
        configuration(tmp_path, f"~{section}.name")
