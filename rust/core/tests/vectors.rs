//! The vectors that every implementation shares (`tests/vectors`), made by the model in `tests/model`.
#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use pybalancer_core::directory::TicketKey;
use pybalancer_core::flow::{FlowHasher, Secret, slot};
use pybalancer_core::maglev::Table;
use serde_json::Value;

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn hash(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    let digits = text(value);
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

fn secret(value: &Value) -> Secret {
    Secret::from_bytes(bytes(value).try_into().unwrap())
}

fn indexes(value: &Value) -> Vec<u16> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|index| index.as_u64().unwrap() as u16)
        .collect()
}

#[test]
fn the_flow_hash_is_siphash_1_3() {
    let vectors = vectors(include_str!("../../../tests/vectors/siphash.json"));
    let hasher = FlowHasher::new(&Secret::from_bytes(std::array::from_fn(|index| {
        index as u8
    })));
    let input: Vec<u8> = (0..64).collect();
    let expected = vectors["siphash-1-3"].as_array().unwrap();
    assert_eq!(expected.len(), 64);
    for (length, expected) in expected.iter().enumerate() {
        assert_eq!(
            hasher.bytes(&input[..length]),
            hash(text(expected)),
            "{length} bytes"
        );
    }
}

#[test]
fn clients_hash_and_fall_into_slots_as_in_the_vectors() {
    let vectors = vectors(include_str!("../../../tests/vectors/flow.json"));
    for flow in vectors["flows"].as_array().unwrap() {
        let hasher = FlowHasher::new(&secret(&flow["secret"]));
        let source: std::net::SocketAddr = text(&flow["source"]).parse().unwrap();
        let expected = hash(text(&flow["hash"]));
        let hashed = match text(&flow["key"]) {
            "source" => hasher.source(source),
            "source-ip" => hasher.source_ip(source.ip()),
            other => panic!("unknown key {other}"),
        };
        assert_eq!(hashed, expected, "{flow}");
        assert_eq!(hasher.bytes(&bytes(&flow["bytes"])), expected, "{flow}");
        for (size, expected) in flow["slots"].as_object().unwrap() {
            assert_eq!(
                u64::from(slot(hashed, size.parse().unwrap())),
                expected.as_u64().unwrap(),
                "{flow}"
            );
        }
    }
}

#[test]
fn tables_are_those_of_the_vectors() {
    let vectors = vectors(include_str!("../../../tests/vectors/maglev.json"));
    for vector in vectors["tables"].as_array().unwrap() {
        let name = &vector["name"];
        let backends: Vec<(&str, u32)> = vector["backends"]
            .as_array()
            .unwrap()
            .iter()
            .map(|backend| (text(&backend[0]), backend[1].as_u64().unwrap() as u32))
            .collect();
        let size = vector["size"].as_u64().unwrap() as u32;
        let table = Table::build(&secret(&vector["secret"]), &backends, size).unwrap();

        let every = vector["every"].as_u64().unwrap() as usize;
        let sampled: Vec<u16> = table.slots().iter().step_by(every).copied().collect();
        assert_eq!(sampled, indexes(&vector["slots"]), "{name}");
        assert_eq!(
            format!("{:032x}", table.digest()),
            text(&vector["digest"]),
            "{name}"
        );

        let counts = table.counts();
        for (index, expected) in vector["counts"].as_array().unwrap().iter().enumerate() {
            let count = counts.get(index).copied().unwrap_or(0);
            assert_eq!(
                u64::from(count),
                expected.as_u64().unwrap(),
                "{name}: {}",
                backends[index].0
            );
        }
        for (key, expected) in vector["walks"].as_object().unwrap() {
            let expected = indexes(expected);
            assert_eq!(
                table.pick(hash(key)),
                expected.first().copied(),
                "{name}: {key}"
            );
            assert_eq!(
                table.walk(hash(key)).collect::<Vec<_>>(),
                expected,
                "{name}: {key}"
            );
        }
    }
}

#[test]
fn tickets_are_those_that_the_model_makes() {
    let vectors = vectors(include_str!("../../../tests/vectors/tickets.json"));
    let tickets = vectors["tickets"].as_array().unwrap();
    assert!(tickets.len() > 100);
    for case in tickets {
        let (pool, backend) = (text(&case["pool"]), text(&case["backend"]));
        let key = TicketKey::derive(&secret(&case["secret"]), pool);
        assert_eq!(
            key,
            TicketKey::from_bytes(bytes(&case["key"]).try_into().unwrap())
        );
        let address = case["address"].as_str().map(|text| text.parse().unwrap());
        let nonce = bytes(&case["nonce"]).try_into().unwrap();
        let made = key.sign(pool, backend, address, hash(text(&case["expiry"])), nonce);
        assert_eq!(made, text(&case["ticket"]), "{case}");
    }
}
