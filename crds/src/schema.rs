//! Schemas written by hand for types that come from Kubernetes itself.
//!
//! The derived schemas of core/v1 types have no bounds and no list types, and their descriptions alone would cost
//! more than the CRD may weigh. These keep the shape, name what people write, and bound it.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Conditions, as the API conventions have them, merged by type.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string", "description": "type of the condition.", "minLength": 1, "maxLength": 316},
                "status": {"type": "string", "description": "status is True, False or Unknown.", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {"type": "integer", "format": "int64", "description": "observedGeneration is the generation this condition speaks of.", "minimum": 0},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "lastTransitionTime is when status last changed."},
                "reason": {"type": "string", "description": "reason in one word.", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                "message": {"type": "string", "description": "message in one sentence.", "maxLength": 32768}
            }
        }
    })
}

/// Any object, kept as it was written.
pub fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A map of short strings.
pub fn string_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 1024}
    })
}

/// `env` of a container.
pub fn env(_: &mut SchemaGenerator) -> Schema {
    let key_ref = |what: &str, optional: bool| {
        let mut schema = serde_json::json!({
            "type": "object",
            "description": format!("{what} in this namespace."),
            "required": ["key", "name"],
            "properties": {
                "name": {"type": "string", "description": "name of the object.", "minLength": 1, "maxLength": 253},
                "key": {"type": "string", "description": "key inside it.", "minLength": 1, "maxLength": 253}
            }
        });
        if optional {
            schema["properties"]["optional"] = serde_json::json!({"type": "boolean", "description": "optional lets the pod start without it."});
        }
        schema
    };
    json_schema!({
        "type": "array",
        "maxItems": 128,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "description": "name of the variable.", "minLength": 1, "maxLength": 253, "pattern": "^[-._a-zA-Z][-._a-zA-Z0-9]*$"},
                "value": {"type": "string", "description": "value in place; `$(OTHER)` refers to an earlier variable.", "maxLength": 32768},
                "valueFrom": {
                    "type": "object",
                    "description": "valueFrom takes the value from elsewhere: exactly one member.",
                    "properties": {
                        "configMapKeyRef": key_ref("configMapKeyRef names a key of a ConfigMap", true),
                        "secretKeyRef": key_ref("secretKeyRef names a key of a Secret", true),
                        "fieldRef": {
                            "type": "object",
                            "description": "fieldRef names a field of the pod, for example `status.podIP`.",
                            "required": ["fieldPath"],
                            "properties": {
                                "apiVersion": {"type": "string", "description": "apiVersion of the path. Default v1.", "maxLength": 32},
                                "fieldPath": {"type": "string", "description": "fieldPath inside the pod.", "minLength": 1, "maxLength": 512}
                            }
                        },
                        "resourceFieldRef": {
                            "type": "object",
                            "description": "resourceFieldRef names a resource of the container, for example `limits.memory`.",
                            "required": ["resource"],
                            "properties": {
                                "containerName": {"type": "string", "description": "containerName whose resource is meant.", "maxLength": 63},
                                "resource": {"type": "string", "description": "resource to take.", "minLength": 1, "maxLength": 253},
                                "divisor": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}], "minimum": 1, "maxLength": 32, "description": "divisor of the value. Default 1."}
                            }
                        }
                    },
                    "x-kubernetes-validations": [{
                        "rule": "(has(self.configMapKeyRef) ? 1 : 0) + (has(self.secretKeyRef) ? 1 : 0) + (has(self.fieldRef) ? 1 : 0) + (has(self.resourceFieldRef) ? 1 : 0) == 1",
                        "message": "valueFrom: write exactly one of configMapKeyRef, secretKeyRef, fieldRef and resourceFieldRef"
                    }]
                }
            },
            "x-kubernetes-validations": [{
                "rule": "!(has(self.value) && has(self.valueFrom))",
                "message": "env: write value or valueFrom, not both"
            }]
        }
    })
}

/// `envFrom` of a container.
pub fn env_from(_: &mut SchemaGenerator) -> Schema {
    let source = |what: &str| {
        serde_json::json!({
            "type": "object",
            "description": format!("{what} in this namespace."),
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "description": "name of the object.", "minLength": 1, "maxLength": 253},
                "optional": {"type": "boolean", "description": "optional lets the pod start without it."}
            }
        })
    };
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "properties": {
                "prefix": {"type": "string", "description": "prefix put before each name.", "maxLength": 253},
                "configMapRef": source("configMapRef names a ConfigMap"),
                "secretRef": source("secretRef names a Secret")
            },
            "x-kubernetes-validations": [{
                "rule": "has(self.configMapRef) != has(self.secretRef)",
                "message": "envFrom: write exactly one of configMapRef and secretRef"
            }]
        }
    })
}

/// `resources` of a container.
pub fn resources(_: &mut SchemaGenerator) -> Schema {
    let quantities = |what: &str| {
        serde_json::json!({
            "type": "object",
            "description": format!("{what}, for example `{{cpu: 100m, memory: 128Mi}}`."),
            "maxProperties": 16,
            "additionalProperties": {
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "maxLength": 32,
                "pattern": "^(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))))?$",
                "x-kubernetes-int-or-string": true
            }
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "requests": quantities("requests are set aside for the container"),
            "limits": quantities("limits are the most the container may use")
        },
        "x-kubernetes-validations": [{
            "rule": "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)",
            "message": "resources: a request is above its limit; lower the request or raise the limit"
        }]
    })
}

/// One probe of a container; a port that is left out is the agent's.
pub fn probe(_: &mut SchemaGenerator) -> Schema {
    let number = |what: &str, minimum: i64, maximum: i64| serde_json::json!({"type": "integer", "format": "int32", "description": what, "minimum": minimum, "maximum": maximum});
    let port = serde_json::json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}], "minimum": 1, "maximum": 65535, "maxLength": 15, "description": "port by number or name. Default: the agent's port."});
    json_schema!({
        "type": "object",
        "properties": {
            "httpGet": {
                "type": "object",
                "description": "httpGet succeeds on a status from 200 to 399.",
                "properties": {
                    "path": {"type": "string", "description": "path asked for. Default `/`.", "maxLength": 2048},
                    "port": port,
                    "scheme": {"type": "string", "description": "scheme is HTTP or HTTPS. Default HTTP.", "enum": ["HTTP", "HTTPS"]},
                    "httpHeaders": {
                        "type": "array", "description": "httpHeaders sent with the request.", "maxItems": 16, "x-kubernetes-list-type": "atomic",
                        "items": {"type": "object", "required": ["name", "value"], "properties": {
                            "name": {"type": "string", "description": "name of the header.", "minLength": 1, "maxLength": 253},
                            "value": {"type": "string", "description": "value of the header.", "maxLength": 4096}
                        }}
                    }
                }
            },
            "tcpSocket": {
                "type": "object", "description": "tcpSocket succeeds when a connection opens.",
                "properties": {"port": port}
            },
            "exec": {
                "type": "object", "description": "exec succeeds when the command exits with 0.",
                "required": ["command"],
                "properties": {"command": {"type": "array", "description": "command and its arguments.", "minItems": 1, "maxItems": 64, "x-kubernetes-list-type": "atomic", "items": {"type": "string", "maxLength": 4096}}}
            },
            "grpc": {
                "type": "object", "description": "grpc succeeds when the health service says SERVING.",
                "properties": {
                    "port": {"type": "integer", "format": "int32", "description": "port by number. Default: the agent's port.", "minimum": 1, "maximum": 65535},
                    "service": {"type": "string", "description": "service asked about. Default: the whole server.", "maxLength": 253}
                }
            },
            "initialDelaySeconds": number("initialDelaySeconds before the first probe. Default 0.", 0, 3600),
            "periodSeconds": number("periodSeconds between probes. Default 10.", 1, 3600),
            "timeoutSeconds": number("timeoutSeconds of one probe. Default 1.", 1, 3600),
            "successThreshold": number("successThreshold of probes in a row. Default 1.", 1, 100),
            "failureThreshold": number("failureThreshold of probes in a row. Default 3.", 1, 1000),
            "terminationGracePeriodSeconds": {"type": "integer", "format": "int64", "description": "terminationGracePeriodSeconds after a failed liveness probe. Default: the pod's.", "minimum": 1, "maximum": 86400}
        },
        "x-kubernetes-validations": [{
            "rule": "(has(self.httpGet) ? 1 : 0) + (has(self.tcpSocket) ? 1 : 0) + (has(self.exec) ? 1 : 0) + (has(self.grpc) ? 1 : 0) == 1",
            "message": "a probe: write exactly one of httpGet, tcpSocket, exec and grpc"
        }]
    })
}
