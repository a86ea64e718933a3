"""The recall family of VAE-GANs (Yang, "Long Video Generation using the VAE-GAN method", PhD thesis, York, 2024)."""
