"""The recall family of VAE-GANs (Jingbo Yang, PhD thesis, University of York, 2024)."""
