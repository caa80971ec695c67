"""The e-commerce tasks, one module each, and the YAML that their lm-eval files share."""
