"""The language all roles share: records, errors, events, topology, gRPC and SQL plumbing. Knows no other room."""
