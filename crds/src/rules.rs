//! CEL rules that several fields share.
//!
//! A rule with a message stands where a `pattern` would do: the API server quotes a pattern as a regular expression,
//! and its reader then has to work out what to write.

use kube::core::Rule;

/// A rate as `constantRate.perSecond` takes it.
pub(crate) const RATE: &str =
    "self.matches('^[0-9]{1,6}([.][0-9]{1,6})?$') && double(self) >= 0.001 && double(self) <= 100000.0";

/// The length of all stages of a LoadTest. The last group of a batch is followed by its delay, too.
pub(crate) const TOTAL_SECONDS: &str = "self.stages.map(s, has(s.batch) \
     ? (s.batch.requests + s.batch.size - 1) / s.batch.size * s.batch.delaySeconds \
     : has(s.constantRate) ? s.constantRate.seconds : 0).sum() <= 604800";

/// The requests of all stages of a LoadTest; a rate that is no number has a message of its own.
pub(crate) const TOTAL_REQUESTS: &str = "self.stages.map(s, has(s.batch) ? double(s.batch.requests) \
     : has(s.constantRate) && s.constantRate.perSecond.matches('^[0-9]{1,6}([.][0-9]{1,6})?$') \
     ? double(s.constantRate.perSecond) * double(s.constantRate.seconds) : 0.0).sum() <= 50000000.0";

/// The name of an object from which names of other objects are made; `why` ends the sentence.
pub(crate) fn object_name(why: &str) -> Rule {
    Rule::new("self.metadata.name.size() <= 45 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message(
        &*format!(
            "metadata.name must be at most 45 characters of a-z, 0-9 and '-', begin with a letter and not end with \
             '-': {why}; choose another name"
        ),
    )
}

/// The name of an entry in a list, or of a Service.
pub(crate) fn entry_name() -> Rule {
    Rule::new("self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("a name consists of a-z, 0-9 and '-', begins with a letter and does not end with '-'; write for example billing-2")
}

/// The name of a request header: a token of RFC 9110, of the characters that are in use.
pub(crate) fn header_name() -> Rule {
    Rule::new("self.matches('^[A-Za-z0-9]([-_A-Za-z0-9]*[A-Za-z0-9])?$')").message(
        "a header's name consists of letters, digits, '-' and '_', and begins and ends with a letter or digit; write for example X-Tenant",
    )
}

/// An absolute path below the root.
pub(crate) fn mount_path() -> Rule {
    Rule::new("self.matches('^(/[^/:]+)+$') && !(self + '/').contains('/../') && !(self + '/').contains('/./')").message(
        "mountPath must begin with '/', not end with it, and hold no ':', '//', '.' or '..'; write for example /etc/agent/tools",
    )
}

/// An amount of money.
pub(crate) fn money() -> Rule {
    Rule::new("self.matches('^[0-9]{1,6}([.][0-9]{1,6})?$')")
        .message("a price must be a decimal string, for example \"0.25\"")
}

/// A number with a sign.
pub(crate) fn decimal() -> Rule {
    Rule::new("self.matches('^-?[0-9]{1,12}([.][0-9]{1,6})?$')")
        .message("a limit must be a decimal string, for example \"4.5\"")
}

/// Numbers above 0, each above the one before it.
pub(crate) fn thresholds() -> Rule {
    Rule::new(
        "self.all(t, t.matches('^[0-9]{1,12}([.][0-9]{1,6})?$')) && double(self[0]) > 0.0 \
         && self.map(t, double(t)).isSorted() && self.all(t, self.exists_one(u, double(u) == double(t)))",
    )
    .message("thresholds must be rising decimal strings above 0, for example [\"2000\", \"8000\"]")
}

/// A percentage.
pub(crate) fn percent() -> Rule {
    Rule::new("self.matches('^[0-9]{1,2}([.][0-9]{1,4})?$')")
        .message("a percentage must be a decimal string from 0 to 99.9999, for example \"0.5\"")
}

/// Exactly one of `members`.
pub(crate) fn one_of(field: &str, members: &[&str]) -> Rule {
    let count: Vec<String> = members
        .iter()
        .map(|member| format!("(has(self.{member}) ? 1 : 0)"))
        .collect();
    let names = match members {
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
        [] => String::new(),
    };
    Rule::new(format!("{} == 1", count.join(" + ")))
        .message(&*format!("{field}: write exactly one of {names}"))
}

/// The member of a union by type: only with its own type.
pub(crate) fn union_member(type_: &str, member: &str) -> Rule {
    Rule::new(format!("self.type == '{type_}' || !has(self.{member})")).message(&*format!(
        "{member} holds the settings of type {type_}; remove it or write type: {type_}"
    ))
}

/// A host's name for DNS.
pub(crate) fn host_name() -> Rule {
    Rule::new("self.matches('^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?([.][A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*$')").message(
        "a host is a name of letters, digits, '-' and '.', without a scheme or port, for example db.example.com",
    )
}

/// None of `fields` may change.
pub(crate) fn immutable(fields: &[&str], message: &str) -> Rule {
    let same: Vec<String> = fields
        .iter()
        .map(|field| {
            format!("has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})")
        })
        .collect();
    Rule::new(same.join(" && ")).message(message)
}

/// Those of `fields` that are there do not fall.
pub(crate) fn ascending(fields: &[&str]) -> Rule {
    let mut pairs = Vec::new();
    for (index, high) in fields.iter().enumerate() {
        for low in fields.iter().take(index) {
            pairs.push(format!(
                "(!has(self.{low}) || !has(self.{high}) || self.{low} <= self.{high})"
            ));
        }
    }
    Rule::new(pairs.join(" && "))
}
