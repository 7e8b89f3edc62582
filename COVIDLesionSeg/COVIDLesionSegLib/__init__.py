"""COVID-19 pneumonia lesions in chest CT: segmentation, measurement and learning from corrections."""

__version__ = "0.1.0"
