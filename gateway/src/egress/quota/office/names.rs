//! Names of holders: pod, process and list of limits, with slashes between.

/// The pod of a holder.
pub(super) fn pod_of(holder: &str) -> Option<&str> {
    holder.split('/').next().filter(|pod| !pod.is_empty())
}

/// The process of a holder: pod and instance.
pub(super) fn process_of(holder: &str) -> Option<&str> {
    holder.rsplit_once('/').map(|(process, _)| process)
}

/// Whether `newer` is of another process in the same pod than `older`, which has ended then.
pub(super) fn is_replaced(older: &str, newer: &str) -> bool {
    let (Some(pod), Some(process)) = (pod_of(older), process_of(older)) else {
        return false;
    };
    pod_of(newer) == Some(pod) && process_of(newer).is_some_and(|newer| newer != process)
}
