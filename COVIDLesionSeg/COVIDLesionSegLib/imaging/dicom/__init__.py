"""DICOM: CT series into volumes, DICOM SEG into label volumes and back."""
