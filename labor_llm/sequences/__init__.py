"""What the models need that read occupation codes and covariates by number, and no text."""
