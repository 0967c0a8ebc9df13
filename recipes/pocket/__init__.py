"""How the embedded model is made: sprites, scenes, autoencoder, text encoder and denoiser."""
