"""certmask_jax: certified defence of image classifiers against adversarial patches."""
