"""The language model alone."""

import pytest
import tiny_systems

from mmjax.models import build


@pytest.mark.quick
def test_it_has_no_image_features():
    model = build("language", tiny_systems.config("language"))
    with pytest.raises(ValueError, match="system 'language' has no vision tower; choose examples at random"):
        model.image_features({}, None)
