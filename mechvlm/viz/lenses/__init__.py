"""The logit lens as a picture: what each position would say."""
