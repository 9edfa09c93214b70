"""The verbs of whoever runs the system: setting up, looking into it, repairing it. No heavy imports at the top."""
