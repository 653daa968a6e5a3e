"""Every error modelnet raises, as one tree. Each class has a stable `code`, the one that travels on the wire.

ModelnetError
├── UsageError                 what was asked for makes no sense; nothing was sent
│   └── MalformedInput         input that is no JSON object, or a field out of range
├── UnknownTask                no task of this id is known to the network
├── UnknownWorker              nobody serves this worker's id
├── ConnectionFailed           the bus cannot be reached or does not serve JetStream
│   └── AuthenticationFailed   the bus refused the credentials
├── BusFull                    the task stream is at its bound; try again later
├── TooLarge                   a body exceeds what may travel
├── ObjectLost                 a large body cannot be had any more
├── LedgerAway                 Redis cannot be reached or takes no writes
├── ReputationAway             Redis cannot be reached for the track records of workers
├── UnknownAccount             the ledger has no account of this name
├── NoFunds                    an account does not have what should be taken from it
├── TenantsAway                Redis cannot be reached for the gateway's tenants
├── UnknownTenant              the gateway has no tenant, or key of one, of this name
├── TenantExists               a tenant of this name was made before
├── GrantConflict              a grant of this id was made with another amount
└── TaskError                  a task did not complete; its Final says why
    ├── TaskFailed             no worker could answer it
    ├── TaskExpired            its deadline passed
    └── TaskCancelled          its owner cancelled it

A worker's handler raises `Reject` to fail a task with a code of its own.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthenticationFailed",
    "BusFull",
    "ConnectionFailed",
    "GrantConflict",
    "LedgerAway",
    "MalformedInput",
    "ModelnetError",
    "NoFunds",
    "ObjectLost",
    "Reject",
    "ReputationAway",
    "TaskCancelled",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TenantExists",
    "TenantsAway",
    "TooLarge",
    "UnknownAccount",
    "UnknownTask",
    "UnknownTenant",
    "UnknownWorker",
    "UsageError",
]


class ModelnetError(Exception):
    """Base of all errors of this library. `str(error)` is one line for a person, `code` is for programs."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.wire_code = code or self.code


class UsageError(ModelnetError):
    """Raised before anything is sent, for arguments that cannot be meant."""

    code = "usage"


class MalformedInput(UsageError):
    """Raised by the client for an input that is no JSON object or a field out of its range."""

    code = "malformed"


class UnknownTask(ModelnetError):
    """Raised by the client when neither the journal nor the task stream knows the id."""

    code = "unknown_task"


class UnknownWorker(ModelnetError):
    """Raised by the client when nobody answers for a worker."""

    code = "unknown_worker"


class ConnectionFailed(ModelnetError):
    """Raised when no server answers, or one that does not store what it is given.

    `wire_code`, beside `no_server`: `no_jetstream` (it is not enabled), `not_stored` (it took a message and stored
    nothing: a full disk), `no_space` (no room for the streams), `no_cluster` (replicas asked of a single server).
    """

    code = "no_server"


class AuthenticationFailed(ConnectionFailed):
    """Raised by `connect` when the server refuses the credentials."""

    code = "bad_credentials"


class BusFull(ModelnetError):
    """Raised by `submit` when the task stream is at its bound. Nothing was accepted: try again later."""

    code = "bus_full"


class TooLarge(ModelnetError):
    """Raised by the client for an input, and by a worker for an output, above the limit on bodies."""

    code = "too_large"


class ObjectLost(ModelnetError):
    """Raised for a large body that has expired, was never stored whole, or is not what its reference says."""

    code = "object_lost"


class LedgerAway(ModelnetError):
    """Raised by the ledger when Redis does not answer or refuses a write. What was asked may have been done or not: ask
    again, every operation is idempotent."""

    code = "ledger_away"


class ReputationAway(ModelnetError):
    """Raised by the reputation book when Redis does not answer or takes no writes. Tell it again: an outcome counts
    once."""

    code = "reputation_away"


class UnknownAccount(ModelnetError):
    """Raised by the ledger for an account that was never credited, limited or paid."""

    code = "unknown_account"


class NoFunds(ModelnetError):
    """Raised by the ledger when more should be taken out of an account than it has. Nothing was taken."""

    code = "no_funds"


class GrantConflict(ModelnetError):
    """Raised by the ledger for a grant whose id was used before, with another amount. Nothing was granted."""

    code = "grant_conflict"


class TenantsAway(ModelnetError):
    """Raised by the store of tenants when Redis does not answer or takes no writes."""

    code = "tenants_away"


class UnknownTenant(ModelnetError):
    """Raised by the store of tenants for a tenant that was never made, or a key that it does not have."""

    code = "unknown_tenant"


class TenantExists(ModelnetError):
    """Raised by the store of tenants when one is to be made that is there. Nothing was changed."""

    code = "tenant_exists"


class TaskError(ModelnetError):
    """Raised by `Task.result()` when the Final is not `completed`; `wire_code` is the Final's own."""

    code = "failed"


class TaskFailed(TaskError):
    """The task failed: contract violation, no acceptable bid, or every attempt ended in an error."""

    code = "failed"


class TaskExpired(TaskError):
    """The task's deadline passed before an answer was accepted."""

    code = "expired"


class TaskCancelled(TaskError):
    """The task was cancelled."""

    code = "cancelled"


class Reject(ModelnetError):
    """Raised by a worker's handler to end its attempt with a code of its own.

    `retryable` says whether another worker may try: false for what is wrong with the task itself.
    """

    code = "worker_error"

    def __init__(self, message: str, *, code: str | None = None, retryable: bool = False) -> None:
        super().__init__(message, code=code)
        self.retryable = retryable
