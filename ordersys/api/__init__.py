"""The HTTP door: REST and JSON in front of both services, which it reaches over gRPC like any other client."""
