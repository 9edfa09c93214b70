"""JSON Schemas of the custom resources in deploy/kubernetes: of the fields that are used there, and no others.

The full schemas come with the operators, which no package index has. What stands here was read from their references:
cert-manager.io/v1, keda.sh/v1alpha1, postgresql.cnpg.io/v1 and rabbitmq.com/v1beta1. A field that is not here fails the
test, and is to be looked up before it is added.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
SIZE: Schema = {"type": "string", "pattern": "^[1-9][0-9]*(Ki|Mi|Gi|Ti)$"}
CPU: Schema = {"type": "string", "pattern": "^[1-9][0-9]*m?$"}
HOURS: Schema = {"type": "string", "pattern": "^[1-9][0-9]*h$"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def fields(required: str = "", /, **properties: Schema) -> Schema:
    """An object with these fields and no others; `required` names those that must be there."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*words: str) -> Schema:
    return {"enum": list(words)}


NAMED = fields("name", name=TEXT)
RESOURCES = fields(requests=fields(cpu=CPU, memory=SIZE), limits=fields(cpu=CPU, memory=SIZE))

SPECS: dict[tuple[str, str], Schema] = {
    ("cert-manager.io/v1", "Issuer"): fields(selfSigned=fields(), ca=fields("secretName", secretName=TEXT)),
    ("cert-manager.io/v1", "Certificate"): fields(
        "secretName issuerRef",
        isCA={"type": "boolean"},
        commonName=TEXT,
        dnsNames=list_of(TEXT),
        secretName=TEXT,
        usages=list_of(one_of("server auth", "client auth")),
        duration=HOURS,
        renewBefore=HOURS,
        privateKey=fields(
            algorithm=one_of("RSA", "ECDSA", "Ed25519"), size=COUNT, rotationPolicy=one_of("Never", "Always")
        ),
        issuerRef=fields("name", name=TEXT, kind=one_of("Issuer", "ClusterIssuer")),
    ),
    ("keda.sh/v1alpha1", "TriggerAuthentication"): fields(
        secretTargetRef=list_of(fields("parameter name key", parameter=TEXT, name=TEXT, key=TEXT))
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): fields(
        "scaleTargetRef triggers",
        scaleTargetRef=fields("name", name=TEXT, kind=TEXT, apiVersion=TEXT),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        cooldownPeriod=COUNT,
        triggers=list_of(
            fields(
                "type metadata",
                type=one_of("rabbitmq"),
                # https://keda.sh/docs/latest/scalers/rabbitmq-queue/: every value is text
                metadata=fields(
                    "queueName mode value",
                    protocol=one_of("amqp", "http", "auto"),
                    queueName=TEXT,
                    mode=one_of("QueueLength", "MessageRate"),
                    value={"type": "string", "pattern": "^[1-9][0-9]*$"},
                ),
                authenticationRef=fields("name", name=TEXT, kind=TEXT),
            )
        ),
    ),
    ("postgresql.cnpg.io/v1", "Cluster"): fields(
        "instances storage",
        instances={"type": "integer", "minimum": 1},
        imageName=TEXT,
        inheritedMetadata=fields(labels=TEXTS, annotations=TEXTS),
        bootstrap=fields(initdb=fields("database owner", database=TEXT, owner=TEXT, secret=NAMED)),
        postgresql=fields(
            parameters=TEXTS,
            synchronous=fields(
                "method number", method=one_of("any", "first"), number={"type": "integer", "minimum": 1}
            ),
        ),
        affinity=fields(topologyKey=TEXT, podAntiAffinityType=one_of("preferred", "required")),
        storage=fields("size", size=SIZE, storageClass=TEXT),
        walStorage=fields("size", size=SIZE, storageClass=TEXT),
        resources=RESOURCES,
    ),
    ("rabbitmq.com/v1beta1", "RabbitmqCluster"): fields(
        replicas={"type": "integer", "minimum": 0},
        image=TEXT,
        secretBackend=fields(externalSecret=NAMED),
        tls=fields(secretName=TEXT, caSecretName=TEXT, disableNonTLSListeners={"type": "boolean"}),
        persistence=fields(storage=SIZE, storageClassName=TEXT),
        rabbitmq=fields(additionalConfig=TEXT, additionalPlugins=list_of(TEXT)),
        resources=RESOURCES,
        affinity={"type": "object"},  # as a pod has it
        terminationGracePeriodSeconds=COUNT,
    ),
}


def schema(manifest: dict[str, Any]) -> Schema:
    """Of a whole custom resource; raises KeyError for one that is not known here."""
    return fields(
        "apiVersion kind metadata spec",
        apiVersion=TEXT,
        kind=TEXT,
        metadata=fields("name", name=TEXT, namespace=TEXT, labels=TEXTS),
        spec=SPECS[manifest["apiVersion"], manifest["kind"]],
    )
