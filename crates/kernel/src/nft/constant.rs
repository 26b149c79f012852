//! The numbers of `include/uapi/linux/netfilter/nf_tables.h` that this module uses. // table
#![allow(missing_docs, reason = "each name is the kernel's, less its prefix")]

pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub(super) const EXCLUSIVE: u16 = libc::NLM_F_EXCL as u16;
pub(super) const APPEND: u16 = libc::NLM_F_APPEND as u16;

// enum nf_tables_msg_types
pub(super) const NEW_TABLE: u16 = 0;
pub(super) const GET_TABLE: u16 = 1;
pub(super) const DELETE_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
pub(super) const DELETE_CHAIN: u16 = 5;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
pub(super) const DELETE_RULE: u16 = 8;
pub(super) const NEW_SET: u16 = 9;
pub(super) const GET_SET: u16 = 10;
pub(super) const DELETE_SET: u16 = 11;
pub(super) const NEW_ELEMENT: u16 = 12;
pub(super) const GET_ELEMENT: u16 = 13;
pub(super) const DELETE_ELEMENT: u16 = 14;
pub(super) const GET_GENERATION: u16 = 16;

// Lists: each entry is an attribute of this kind.
pub(super) const LIST_ENTRY: u16 = 1;

// enum nft_table_attributes
pub(super) const TABLE_NAME: u16 = 1;

// enum nft_chain_attributes, nft_hook_attributes
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;

// enum nft_rule_attributes
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_POSITION: u16 = 6;
pub(super) const RULE_USERDATA: u16 = 7;

// enum nft_set_attributes, nft_set_desc_attributes, nft_set_field_attributes, nft_set_flags
pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LENGTH: u16 = 5;
pub(super) const SET_DATA_TYPE: u16 = 6;
pub(super) const SET_DATA_LENGTH: u16 = 7;
pub(super) const SET_DESCRIPTION: u16 = 9;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_USERDATA: u16 = 13;
pub(super) const DESCRIPTION_CONCATENATION: u16 = 2;
pub(super) const FIELD_LENGTH: u16 = 1;
pub(super) const FLAG_ANONYMOUS: u32 = 1;
pub(super) const FLAG_INTERVAL: u32 = 4;
pub(super) const FLAG_MAP: u32 = 8;
pub(super) const FLAG_CONCATENATION: u32 = 0x80;

// enum nft_set_elem_list_attributes, nft_set_elem_attributes, nft_set_elem_flags
pub(super) const ELEMENTS_TABLE: u16 = 1;
pub(super) const ELEMENTS_SET: u16 = 2;
pub(super) const ELEMENTS_LIST: u16 = 3;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_DATA: u16 = 2;
pub(super) const ELEMENT_FLAGS: u16 = 3;
pub(super) const ELEMENT_USERDATA: u16 = 6;
pub(super) const ELEMENT_KEY_END: u16 = 10;
pub(super) const ELEMENT_INTERVAL_END: u32 = 1;

// enum nft_data_attributes, nft_verdict_attributes
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
/// The type of data that is a verdict: `NFT_DATA_VERDICT`.
pub(super) const TYPE_VERDICT: u32 = 0xffff_ff00;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;

// enum nft_expr_attributes and those of the expressions
pub(super) const EXPRESSION_NAME: u16 = 1;
pub(super) const EXPRESSION_DATA: u16 = 2;
pub(super) const META_DESTINATION: u16 = 1;
pub(super) const META_KEY: u16 = 2;
pub(super) const META_SOURCE: u16 = 3;
pub(super) const CT_DESTINATION: u16 = 1;
pub(super) const CT_KEY: u16 = 2;
pub(super) const PAYLOAD_DESTINATION: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LENGTH: u16 = 4;
pub(super) const CMP_SOURCE: u16 = 1;
pub(super) const CMP_OPERATOR: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;
pub(super) const BITWISE_SOURCE: u16 = 1;
pub(super) const BITWISE_DESTINATION: u16 = 2;
pub(super) const BITWISE_LENGTH: u16 = 3;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;
pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SOURCE: u16 = 2;
pub(super) const LOOKUP_DESTINATION: u16 = 3;
pub(super) const LOOKUP_FLAGS: u16 = 5;
pub(super) const LOOKUP_INVERTED: u32 = 1;
pub(super) const RANGE_SOURCE: u16 = 1;
pub(super) const RANGE_OPERATOR: u16 = 2;
pub(super) const RANGE_FROM: u16 = 3;
pub(super) const RANGE_TO: u16 = 4;
pub(super) const FIB_DESTINATION: u16 = 1;
pub(super) const FIB_RESULT: u16 = 2;
pub(super) const FIB_FLAGS: u16 = 3;
pub(super) const NAT_TYPE: u16 = 1;
pub(super) const NAT_FAMILY: u16 = 2;
pub(super) const NAT_ADDRESS: u16 = 3;
pub(super) const NAT_PORT: u16 = 5;
pub(super) const MASQUERADE_FLAGS: u16 = 1;
pub(super) const COUNTER_BYTES: u16 = 1;
pub(super) const COUNTER_PACKETS: u16 = 2;
pub(super) const LOG_GROUP: u16 = 1;
pub(super) const LOG_PREFIX: u16 = 2;
pub(super) const LOG_BYTES: u16 = 3;
pub(super) const LIMIT_RATE: u16 = 1;
pub(super) const LIMIT_UNIT: u16 = 2;
pub(super) const LIMIT_BURST: u16 = 3;
pub(super) const LIMIT_TYPE: u16 = 4;
pub(super) const IMMEDIATE_DESTINATION: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;

// enum nft_meta_keys
pub(super) const META_PROTOCOL: u32 = 1;
pub(super) const META_PRIORITY: u32 = 2;
pub(super) const META_MARK: u32 = 3;
pub(super) const META_INPUT_NAME: u32 = 6;
pub(super) const META_OUTPUT_NAME: u32 = 7;
pub(super) const META_INPUT_TYPE: u32 = 8;
pub(super) const META_FAMILY: u32 = 15;
pub(super) const META_TRANSPORT: u32 = 16;
pub(super) const META_INPUT_GROUP: u32 = 21;

// enum nft_ct_keys
pub(super) const CT_STATE: u32 = 0;
pub(super) const CT_STATUS: u32 = 2;
pub(super) const CT_MARK: u32 = 3;

// enum nft_fib_result, nft_fib_flags, nft_nat_types
pub(super) const FIB_RESULT_LINK: u32 = 1;
pub(super) const FIB_RESULT_TYPE: u32 = 3;
pub(super) const FIB_OF_SOURCE: u32 = 1;
pub(super) const FIB_OF_DESTINATION: u32 = 2;
pub(super) const FIB_BY_INPUT_LINK: u32 = 8;
pub(super) const FIB_PRESENT: u32 = 32;
pub(super) const NAT_OF_DESTINATION: u32 = 1;

// enum nft_payload_bases
pub(super) const LINK_HEADER: u32 = 0;
pub(super) const NETWORK_HEADER: u32 = 1;
pub(super) const TRANSPORT_HEADER: u32 = 2;

// enum nft_registers: a first register of 16 bytes, which is also the first four of the 4-byte ones
pub(super) const REGISTER_VERDICT: u32 = 0;
pub(super) const REGISTER_FIRST: u32 = 1;
pub(super) const REGISTER_WORDS: u32 = 8;

// Verdicts
pub(super) const VERDICT_DROP: i32 = 0;
pub(super) const VERDICT_ACCEPT: i32 = 1;
pub(super) const VERDICT_JUMP: i32 = -3;
pub(super) const VERDICT_GOTO: i32 = -4;
pub(super) const VERDICT_RETURN: i32 = -5;

// NF_NAT_RANGE_PROTO_RANDOM_FULLY
pub(super) const FULLY_RANDOM: u32 = 1 << 4;
