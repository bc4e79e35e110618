//! Taking our rules out of tables that others use too. Pure: text of the tools in, text for the tools out.

use crate::config::CNI_NETWORK;

/// What to feed to `iptables-restore --noflush` so that the rules of our host ports and our forwarding rules are gone.
///
/// The port map plugin's rules carry our network's name in a comment and lead to one chain per pod. Its shared chains
/// go too when no other network's rule is in them.
pub fn removal(saved: &str, forward_comment: &str) -> String {
    const SHARED: &str = "CNI-HOSTPORT-";
    let network = format!("name: \\\"{CNI_NETWORK}\\\"");
    let mut script = String::new();
    for table in saved.split("\nCOMMIT") {
        let Some(name) = table.lines().find_map(|line| line.strip_prefix('*')) else {
            continue;
        };
        let rules: Vec<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix("-A "))
            .collect();
        let ours = |rule: &&str| rule.contains(&network) || rule.contains(forward_comment);
        let target = |rule: &str| {
            rule.split(" -j ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next())
                .map(str::to_owned)
        };
        let mut deletions: Vec<&str> = rules.iter().copied().filter(ours).collect();
        let mut chains: Vec<String> = deletions
            .iter()
            .filter_map(|rule| target(rule))
            .filter(|chain| chain.starts_with("CNI-DN-"))
            .collect();
        let others_use_it = rules
            .iter()
            .any(|rule| rule.starts_with("CNI-HOSTPORT-DNAT ") && !ours(rule));
        let shared: Vec<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
            .filter(|chain| chain.starts_with(SHARED))
            .collect();
        if !others_use_it {
            let jumps = rules.iter().copied().filter(|rule| {
                !rule.starts_with("CNI-") && target(rule).is_some_and(|chain| chain.starts_with(SHARED))
            });
            deletions.extend(jumps);
            chains.extend(shared.iter().map(|chain| (*chain).to_owned()));
        }
        chains.sort_unstable();
        chains.dedup();
        // Rules in a chain that goes are flushed with it.
        let lines: Vec<String> = deletions
            .iter()
            .filter(|rule| !chains.iter().any(|chain| rule.starts_with(&format!("{chain} "))))
            .map(|rule| format!("-D {rule}"))
            .chain(chains.iter().map(|chain| format!("-F {chain}")))
            .chain(chains.iter().map(|chain| format!("-X {chain}")))
            .collect();
        if !lines.is_empty() {
            script.push_str(&format!("*{name}\n{}\nCOMMIT\n", lines.join("\n")));
        }
    }
    script
}

/// Whether the text of `nft list table` has chains that accept everything, and nothing else.
pub fn is_empty_table(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| {
        line.is_empty()
            || line == "}"
            || (line.starts_with("table ") || line.starts_with("chain ")) && line.ends_with('{')
            || line.starts_with("type ") && line.ends_with("policy accept;")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"*nat
:PREROUTING ACCEPT [0:0]
:CNI-DN-aaa - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-DN-aaa -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.0.5:80
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"flotilla-local\" id: \"aaa\"" -j CNI-DN-aaa
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -i flot0 -m comment --comment flotilla-cluster-flot0 -j ACCEPT
-A FORWARD -i docker0 -j ACCEPT
COMMIT
"#;

    #[test]
    fn only_our_iptables_rules_go() {
        let script = removal(SAVED, "flotilla-cluster-flot0");
        assert!(
            script.contains("-D PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n"),
            "{script}"
        );
        assert!(
            script.contains("-X CNI-DN-aaa") && script.contains("-X CNI-HOSTPORT-MASQ"),
            "{script}"
        );
        assert!(script.contains("*filter\n-D FORWARD -i flot0 "), "{script}");
        assert!(!script.contains("docker0"), "{script}");
    }

    #[test]
    fn chains_another_network_uses_stay() {
        let other = "-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"podman\\\" id: \\\"b\\\"\" -j CNI-DN-bbb\nCOMMIT\n*filter";
        let saved = SAVED.replacen("COMMIT\n*filter", other, 1);
        let script = removal(&saved, "flotilla-cluster-flot0");
        assert!(script.contains("-X CNI-DN-aaa"), "{script}");
        assert!(
            !script.contains("-X CNI-HOSTPORT")
                && !script.contains("CNI-DN-bbb")
                && !script.contains("PREROUTING"),
            "{script}"
        );
    }

    #[test]
    fn only_a_table_without_rules_is_empty() {
        let table = |more: &str| {
            format!(
                "table ip nat {{\n\tchain OUTPUT {{\n\t\ttype nat hook output priority -100; policy accept;\n{more}\t}}\n}}\n"
            )
        };
        assert!(is_empty_table(&table("")));
        assert!(!is_empty_table(&table("\t\tip daddr 192.0.2.1 accept\n")));
        assert!(!is_empty_table(&table("").replace("accept", "drop")));
    }

    #[test]
    fn nothing_of_ours_means_no_change() {
        assert_eq!(
            removal(
                "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i docker0 -j ACCEPT\nCOMMIT\n",
                "x"
            ),
            ""
        );
    }
}
