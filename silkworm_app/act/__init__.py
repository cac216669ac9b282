"""What the activation and the nets are: torch and timm, no fastai, no pictures"""
