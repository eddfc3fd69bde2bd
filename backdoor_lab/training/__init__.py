"""Networks, their LightningModule, the callback after training, and evaluation."""
