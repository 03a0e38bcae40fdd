"""The tables of SOP classes beside pydicom's dictionary, which is made from the standard."""

from __future__ import annotations

import pytest

from lbdr.haproxy.sop_classes import KEYWORDS, MODALITIES, OTHERS, of_modality

pydicom_uid = pytest.importorskip("pydicom.uid")


@pytest.mark.parametrize("name", MODALITIES)
def test_modality(name: str) -> None:
    assert of_modality(name)
    for uid, keyword in MODALITIES[name].items():
        known = pydicom_uid.UID(uid)
        assert known.keyword == keyword
        assert known.type == "SOP Class"
        assert "Storage" in known.name


@pytest.mark.parametrize("uid", OTHERS)
def test_others(uid: str) -> None:
    assert pydicom_uid.UID(uid).keyword == OTHERS[uid]


def test_no_uid_is_of_two_modalities() -> None:
    uids = [uid for table in (*MODALITIES.values(), OTHERS) for uid in table]
    assert len(uids) == len(set(uids)) == len(KEYWORDS)


def test_a_slice_is_no_enhanced_object() -> None:
    """Multi-frame classes are in the enhanced tables alone."""
    for name, table in MODALITIES.items():
        for keyword in table.values():
            assert keyword.startswith(("Enhanced", "LegacyConverted")) <= (
                name.startswith("ENHANCED_") or name == "SR"
            )


def test_every_image_class_in_use_is_in_a_table() -> None:
    """Those of the standard that are left out are here by name, so that none is forgotten."""
    left = {
        uid.keyword
        for uid in (pydicom_uid.UID(text) for text in pydicom_uid.UID_dictionary)
        if uid.type == "SOP Class"
        and uid.keyword.endswith("ImageStorage")
        and not uid.is_retired
        and uid not in KEYWORDS.values()
        and not uid.keyword.startswith(("DICOS", "EddyCurrent"))
    }
    assert left == {
        "ConfocalMicroscopyImageStorage",
        "ConfocalMicroscopyTiledPyramidalImageStorage",
        "DermoscopicPhotographyImageStorage",
        "EnhancedContinuousRTImageStorage",
        "EnhancedRTImageStorage",
        "PhotoacousticImageStorage",
        "XRay3DCraniofacialImageStorage",
    }
