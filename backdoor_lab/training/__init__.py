"""Networks, the LightningModule around them, the callback after training, and measuring."""
