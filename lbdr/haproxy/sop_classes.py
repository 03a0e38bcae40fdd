"""Storage SOP classes by modality (DICOM PS3.4 B.5, PS3.6 A); a test compares them with pydicom.

A modality's name is that of PS3.3 C.7.3.1.1.1. The multi-frame successors have names of their own:
an enhanced CT object is another thing to receive than a thousand slices, so CT does not mean it.
"""

# ruff: noqa: E501 (a keyword of PS3.6 cannot be broken)
from __future__ import annotations

from collections.abc import Mapping

MODALITIES: Mapping[str, Mapping[str, str]] = {
    "CR": {
        "1.2.840.10008.5.1.4.1.1.1": "ComputedRadiographyImageStorage",
    },
    "CT": {
        "1.2.840.10008.5.1.4.1.1.2": "CTImageStorage",
    },
    "ENHANCED_CT": {
        "1.2.840.10008.5.1.4.1.1.2.1": "EnhancedCTImageStorage",
        "1.2.840.10008.5.1.4.1.1.2.2": "LegacyConvertedEnhancedCTImageStorage",
    },
    "DX": {
        "1.2.840.10008.5.1.4.1.1.1.1": "DigitalXRayImageStorageForPresentation",
        "1.2.840.10008.5.1.4.1.1.1.1.1": "DigitalXRayImageStorageForProcessing",
    },
    "ECG": {
        "1.2.840.10008.5.1.4.1.1.9.1.1": "TwelveLeadECGWaveformStorage",
        "1.2.840.10008.5.1.4.1.1.9.1.2": "GeneralECGWaveformStorage",
        "1.2.840.10008.5.1.4.1.1.9.1.3": "AmbulatoryECGWaveformStorage",
        "1.2.840.10008.5.1.4.1.1.9.1.4": "General32bitECGWaveformStorage",
    },
    "ES": {
        "1.2.840.10008.5.1.4.1.1.77.1.1": "VLEndoscopicImageStorage",
        "1.2.840.10008.5.1.4.1.1.77.1.1.1": "VideoEndoscopicImageStorage",
    },
    "GM": {
        "1.2.840.10008.5.1.4.1.1.77.1.2": "VLMicroscopicImageStorage",
        "1.2.840.10008.5.1.4.1.1.77.1.2.1": "VideoMicroscopicImageStorage",
    },
    "HD": {
        "1.2.840.10008.5.1.4.1.1.9.2.1": "HemodynamicWaveformStorage",
    },
    "IO": {
        "1.2.840.10008.5.1.4.1.1.1.3": "DigitalIntraOralXRayImageStorageForPresentation",
        "1.2.840.10008.5.1.4.1.1.1.3.1": "DigitalIntraOralXRayImageStorageForProcessing",
    },
    "KO": {
        "1.2.840.10008.5.1.4.1.1.88.59": "KeyObjectSelectionDocumentStorage",
    },
    "MG": {
        "1.2.840.10008.5.1.4.1.1.1.2": "DigitalMammographyXRayImageStorageForPresentation",
        "1.2.840.10008.5.1.4.1.1.1.2.1": "DigitalMammographyXRayImageStorageForProcessing",
        "1.2.840.10008.5.1.4.1.1.13.1.3": "BreastTomosynthesisImageStorage",
        "1.2.840.10008.5.1.4.1.1.13.1.4": "BreastProjectionXRayImageStorageForPresentation",
        "1.2.840.10008.5.1.4.1.1.13.1.5": "BreastProjectionXRayImageStorageForProcessing",
    },
    "MR": {
        "1.2.840.10008.5.1.4.1.1.4": "MRImageStorage",
    },
    "ENHANCED_MR": {
        "1.2.840.10008.5.1.4.1.1.4.1": "EnhancedMRImageStorage",
        "1.2.840.10008.5.1.4.1.1.4.2": "MRSpectroscopyStorage",
        "1.2.840.10008.5.1.4.1.1.4.3": "EnhancedMRColorImageStorage",
        "1.2.840.10008.5.1.4.1.1.4.4": "LegacyConvertedEnhancedMRImageStorage",
    },
    "NM": {
        "1.2.840.10008.5.1.4.1.1.5": "NuclearMedicineImageStorageRetired",
        "1.2.840.10008.5.1.4.1.1.20": "NuclearMedicineImageStorage",
    },
    "OP": {
        "1.2.840.10008.5.1.4.1.1.77.1.5.1": "OphthalmicPhotography8BitImageStorage",
        "1.2.840.10008.5.1.4.1.1.77.1.5.2": "OphthalmicPhotography16BitImageStorage",
        "1.2.840.10008.5.1.4.1.1.77.1.5.5": "WideFieldOphthalmicPhotographyStereographicProjectionImageStorage",
        "1.2.840.10008.5.1.4.1.1.77.1.5.6": "WideFieldOphthalmicPhotography3DCoordinatesImageStorage",
    },
    "OPT": {
        "1.2.840.10008.5.1.4.1.1.77.1.5.4": "OphthalmicTomographyImageStorage",
        "1.2.840.10008.5.1.4.1.1.77.1.5.7": "OphthalmicOpticalCoherenceTomographyEnFaceImageStorage",
        "1.2.840.10008.5.1.4.1.1.77.1.5.8": "OphthalmicOpticalCoherenceTomographyBscanVolumeAnalysisStorage",
    },
    "PDF": {
        "1.2.840.10008.5.1.4.1.1.104.1": "EncapsulatedPDFStorage",
    },
    "PR": {
        "1.2.840.10008.5.1.4.1.1.11.1": "GrayscaleSoftcopyPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.2": "ColorSoftcopyPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.3": "PseudoColorSoftcopyPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.4": "BlendingSoftcopyPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.5": "XAXRFGrayscaleSoftcopyPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.6": "GrayscalePlanarMPRVolumetricPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.7": "CompositingPlanarMPRVolumetricPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.8": "AdvancedBlendingPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.9": "VolumeRenderingVolumetricPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.10": "SegmentedVolumeRenderingVolumetricPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.11": "MultipleVolumeRenderingVolumetricPresentationStateStorage",
        "1.2.840.10008.5.1.4.1.1.11.12": "VariableModalityLUTSoftcopyPresentationStateStorage",
    },
    "PT": {
        "1.2.840.10008.5.1.4.1.1.128": "PositronEmissionTomographyImageStorage",
    },
    "ENHANCED_PT": {
        "1.2.840.10008.5.1.4.1.1.128.1": "LegacyConvertedEnhancedPETImageStorage",
        "1.2.840.10008.5.1.4.1.1.130": "EnhancedPETImageStorage",
    },
    "REG": {
        "1.2.840.10008.5.1.4.1.1.66.1": "SpatialRegistrationStorage",
        "1.2.840.10008.5.1.4.1.1.66.3": "DeformableSpatialRegistrationStorage",
    },
    "RF": {
        "1.2.840.10008.5.1.4.1.1.12.2": "XRayRadiofluoroscopicImageStorage",
    },
    "ENHANCED_RF": {
        "1.2.840.10008.5.1.4.1.1.12.2.1": "EnhancedXRFImageStorage",
    },
    "RTDOSE": {
        "1.2.840.10008.5.1.4.1.1.481.2": "RTDoseStorage",
    },
    "RTIMAGE": {
        "1.2.840.10008.5.1.4.1.1.481.1": "RTImageStorage",
    },
    "RTPLAN": {
        "1.2.840.10008.5.1.4.1.1.481.5": "RTPlanStorage",
        "1.2.840.10008.5.1.4.1.1.481.8": "RTIonPlanStorage",
    },
    "RTSTRUCT": {
        "1.2.840.10008.5.1.4.1.1.481.3": "RTStructureSetStorage",
    },
    "SC": {
        "1.2.840.10008.5.1.4.1.1.7": "SecondaryCaptureImageStorage",
        "1.2.840.10008.5.1.4.1.1.7.1": "MultiFrameSingleBitSecondaryCaptureImageStorage",
        "1.2.840.10008.5.1.4.1.1.7.2": "MultiFrameGrayscaleByteSecondaryCaptureImageStorage",
        "1.2.840.10008.5.1.4.1.1.7.3": "MultiFrameGrayscaleWordSecondaryCaptureImageStorage",
        "1.2.840.10008.5.1.4.1.1.7.4": "MultiFrameTrueColorSecondaryCaptureImageStorage",
    },
    "SEG": {
        "1.2.840.10008.5.1.4.1.1.66.4": "SegmentationStorage",
        "1.2.840.10008.5.1.4.1.1.66.5": "SurfaceSegmentationStorage",
    },
    "SM": {
        "1.2.840.10008.5.1.4.1.1.77.1.3": "VLSlideCoordinatesMicroscopicImageStorage",
        "1.2.840.10008.5.1.4.1.1.77.1.6": "VLWholeSlideMicroscopyImageStorage",
    },
    "SR": {
        "1.2.840.10008.5.1.4.1.1.88.11": "BasicTextSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.22": "EnhancedSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.33": "ComprehensiveSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.34": "Comprehensive3DSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.35": "ExtensibleSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.40": "ProcedureLogStorage",
        "1.2.840.10008.5.1.4.1.1.88.50": "MammographyCADSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.65": "ChestCADSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.67": "XRayRadiationDoseSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.68": "RadiopharmaceuticalRadiationDoseSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.69": "ColonCADSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.70": "ImplantationPlanSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.71": "AcquisitionContextSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.72": "SimplifiedAdultEchoSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.73": "PatientRadiationDoseSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.74": "PlannedImagingAgentAdministrationSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.75": "PerformedImagingAgentAdministrationSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.76": "EnhancedXRayRadiationDoseSRStorage",
        "1.2.840.10008.5.1.4.1.1.88.77": "WaveformAnnotationSRStorage",
    },
    "US": {
        "1.2.840.10008.5.1.4.1.1.3": "UltrasoundMultiFrameImageStorageRetired",
        "1.2.840.10008.5.1.4.1.1.3.1": "UltrasoundMultiFrameImageStorage",
        "1.2.840.10008.5.1.4.1.1.6": "UltrasoundImageStorageRetired",
        "1.2.840.10008.5.1.4.1.1.6.1": "UltrasoundImageStorage",
    },
    "ENHANCED_US": {
        "1.2.840.10008.5.1.4.1.1.6.2": "EnhancedUSVolumeStorage",
    },
    "XA": {
        "1.2.840.10008.5.1.4.1.1.12.1": "XRayAngiographicImageStorage",
        "1.2.840.10008.5.1.4.1.1.12.3": "XRayAngiographicBiPlaneImageStorage",
    },
    "ENHANCED_XA": {
        "1.2.840.10008.5.1.4.1.1.12.1.1": "EnhancedXAImageStorage",
        "1.2.840.10008.5.1.4.1.1.13.1.1": "XRay3DAngiographicImageStorage",
    },
    "XC": {
        "1.2.840.10008.5.1.4.1.1.77.1.4": "VLPhotographicImageStorage",
        "1.2.840.10008.5.1.4.1.1.77.1.4.1": "VideoPhotographicImageStorage",
    },
}
"""UID -> keyword of PS3.6, by modality."""

OTHERS: Mapping[str, str] = {
    "1.2.840.10008.1.1": "Verification",
    "1.2.840.10008.1.20.1": "StorageCommitmentPushModel",
    "1.2.840.10008.3.1.2.3.3": "ModalityPerformedProcedureStep",
    "1.2.840.10008.5.1.4.1.2.1.1": "PatientRootQueryRetrieveInformationModelFind",
    "1.2.840.10008.5.1.4.1.2.1.2": "PatientRootQueryRetrieveInformationModelMove",
    "1.2.840.10008.5.1.4.1.2.1.3": "PatientRootQueryRetrieveInformationModelGet",
    "1.2.840.10008.5.1.4.1.2.2.1": "StudyRootQueryRetrieveInformationModelFind",
    "1.2.840.10008.5.1.4.1.2.2.2": "StudyRootQueryRetrieveInformationModelMove",
    "1.2.840.10008.5.1.4.1.2.2.3": "StudyRootQueryRetrieveInformationModelGet",
    "1.2.840.10008.5.1.4.31": "ModalityWorklistInformationModelFind",
}
"""SOP classes that are not stored: UID -> keyword."""

KEYWORDS: Mapping[str, str] = {
    keyword: uid for table in (*MODALITIES.values(), OTHERS) for uid, keyword in table.items()
}
"""Keyword -> UID of all of them."""


def of_modality(name: str) -> tuple[str, ...]:
    """The UIDs of a modality's storage SOP classes.

    Raises:
        KeyError: no modality of MODALITIES has this name.
    """
    return tuple(MODALITIES[name])
