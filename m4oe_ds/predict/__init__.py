"""``m4oe predict``: a folder of DICOM files to predictions of a finished run, through the converter's pixel path."""
