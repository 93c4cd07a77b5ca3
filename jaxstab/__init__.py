"""jaxstab: stable pre-training of decoder-only language models, and instruments that show why it is stable."""
