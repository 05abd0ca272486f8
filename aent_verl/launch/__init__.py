"""From a list of overrides to a running verl: compose, platform, the workers' environment, processes, Ray jobs."""
